#include "tools/event_names.h"

#include <stddef.h>

const struct rp_event_name rp_event_names[] = {
    /* the machine */
    {"STOP", "paused", RP_LINE_INFO},
    {"RESUME", "runs", RP_LINE_INFO},
    {"POWERDOWN", NULL, RP_LINE_INFO},
    {"RESET", NULL, RP_LINE_INFO},
    {"SHUTDOWN", NULL, RP_LINE_INFO},
    {"GUEST_FAILED", NULL, RP_LINE_NONE},
    {"DEVICE_BROKEN", NULL, RP_LINE_NONE},
    {"BALLOON_CHANGE", NULL, RP_LINE_NONE},
    {"ENTERED", NULL, RP_LINE_INFO},
    /* jobs */
    {"JOB_STATUS_CHANGE", NULL, RP_LINE_NONE},
    {"CHECKPOINT_COMPLETED", NULL, RP_LINE_INFO},
    {"CHECKPOINT_FAILED", NULL, RP_LINE_NONE},
    /* protection */
    {"PROTECTED", "protected from here on", RP_LINE_NOTICE},
    {"RESYNC", "the standby was sent what differed", RP_LINE_INFO},
    {"FULL_SYNC", "the standby was sent all of memory", RP_LINE_INFO},
    {"DISK_SYNC", "the standby was sent what it lacked of the disks", RP_LINE_INFO},
    {"PROTECT_LOST", "the standby was lost", RP_LINE_WARN},
    {"UNPROTECTED", "protection ended", RP_LINE_NOTICE},
    {"OUTPUTS_OPEN", "outputs that were held may leave", RP_LINE_NOTICE},
    {"STANDBY_GONE", NULL, RP_LINE_WARN},
    {"SWITCHED", "handed over to the standby", RP_LINE_NOTICE},
    {"STORAGE_NOT_RELEASED", NULL, RP_LINE_WARN},
    {"STORAGE_NOT_REGAINED", NULL, RP_LINE_WARN},
    /* the standby */
    {"PRIMARY_CONNECTED", NULL, RP_LINE_NOTICE},
    {"PRIMARY_LOST", "the standby lost its primary", RP_LINE_WARN},
    {"PRIMARY_LEFT", "the primary parted from its standby", RP_LINE_NOTICE},
    {"STANDBY_READY", NULL, RP_LINE_NOTICE},
    {"STANDBY_BEHIND", "the standby may not run what it holds", RP_LINE_WARN},
    {"STANDBY_FORGOT", "the standby forgot what it held", RP_LINE_NOTICE},
    {"SWITCHED_HERE", "taken over from a source that handed it over", RP_LINE_NOTICE},
    {"TAKEN_OVER", "taken over from a primary that was lost", RP_LINE_NOTICE},
    {"TAKEOVER_FORCED", "the administrator has the standby go on from what it holds; what came later is lost", RP_LINE_NONE},
    {"TAKEOVER_WAITS", "the lease is held, but a disk cannot be opened here yet", RP_LINE_NONE},
    {"WAITS_HERE", NULL, RP_LINE_NOTICE},
    /* the lease */
    {"LEASE_HELD", "the lease was taken", RP_LINE_INFO},
    {"LEASE_ADVANCED", "the lease moved to its next term", RP_LINE_INFO},
    {"LEASE_LOST", "the lease was lost, outputs were shut", RP_LINE_WARN},
    {"LEASE_REGAINED", "the lease is held again, and nobody was in between", RP_LINE_NOTICE},
    {"LEASE_NOT_RELEASED", "the lease could not be given up", RP_LINE_WARN},
    /* the engine */
    {"CODEC", "a codec was switched", RP_LINE_NONE},
    {"CAPTURE", "capture of dirty pages", RP_LINE_NONE},
    {"EPOCH_LENGTH", "the length of epochs was changed", RP_LINE_INFO},
    {"THROTTLE", "the guest was slowed down", RP_LINE_INFO},
    /* the link */
    {"LANE_LOST", "a connection of the link was lost", RP_LINE_WARN},
    {"LANE_BACK", NULL, RP_LINE_NOTICE},
    {"LANE_MISSING", NULL, RP_LINE_WARN},
    {"PATH_LOST", NULL, RP_LINE_WARN},
    {"PATH_BACK", NULL, RP_LINE_NOTICE},
    {"SPARE_MISSING", NULL, RP_LINE_WARN},
    {"TRANSPORT_DEGRADED", NULL, RP_LINE_WARN},
    {NULL, NULL, RP_LINE_NONE},
};
