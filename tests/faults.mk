# Every fault point of core/fault.h and the test that fires it (tests/check/lint compares; a line that begins with # is a comment).
sink-write:       tests/unit/test_sink_fd.c
sink-sync:        tests/unit/test_sink_fd.c
image-apply:      tests/unit/test_image.c
link-lane:        tests/unit/test_lanes.c
link-record:      tests/unit/test_lanes.c
link-frame:       tests/unit/test_lanes.c
link-path:        tests/unit/test_lanes.c
link-spare:       tests/unit/test_lanes.c
lease-acquire:    tests/unit/test_lease.c
lease-renew:      tests/unit/test_lease.c
lease-release:    tests/unit/test_lease.c
lease-advance:    tests/unit/test_fence.c
journal-write:    tests/unit/test_replica.c
journal-sync:     tests/unit/test_replica.c
replica-write:    tests/unit/test_replica.c
replica-sync:     tests/unit/test_replica.c
disk-mark:        tests/unit/test_disks.c
