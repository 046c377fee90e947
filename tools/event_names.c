#include "tools/event_names.h"

#include <stddef.h>

const struct rp_event_name rp_event_names[] = {
    /* the machine */
    {"STOP", "paused"},
    {"RESUME", "runs"},
    {"POWERDOWN", NULL},
    {"RESET", NULL},
    {"SHUTDOWN", NULL},
    {"GUEST_FAILED", NULL},
    {"DEVICE_BROKEN", NULL},
    {"BALLOON_CHANGE", NULL},
    {"ENTERED", NULL},
    /* jobs */
    {"JOB_STATUS_CHANGE", NULL},
    {"CHECKPOINT_COMPLETED", NULL},
    {"CHECKPOINT_FAILED", NULL},
    /* protection */
    {"PROTECTED", "protected from here on"},
    {"RESYNC", "the standby was sent what differed"},
    {"FULL_SYNC", "the standby was sent all of memory"},
    {"DISK_SYNC", "the standby was sent what it lacked of the disks"},
    {"PROTECT_LOST", "the standby was lost"},
    {"UNPROTECTED", "protection ended"},
    {"OUTPUTS_OPEN", "outputs that were held may leave"},
    {"STANDBY_GONE", NULL},
    {"SWITCHED", "handed over to the standby"},
    {"STORAGE_NOT_RELEASED", NULL},
    {"STORAGE_NOT_REGAINED", NULL},
    /* the standby */
    {"PRIMARY_CONNECTED", NULL},
    {"PRIMARY_LOST", "the standby lost its primary"},
    {"STANDBY_READY", NULL},
    {"STANDBY_BEHIND", "the standby may not run what it holds"},
    {"STANDBY_FORGOT", "the standby forgot what it held"},
    {"SWITCHED_HERE", "taken over from a source that handed it over"},
    {"TAKEN_OVER", "taken over from a primary that was lost"},
    {"TAKEOVER_FORCED", "the administrator has the standby go on from what it holds; what came later is lost"},
    {"TAKEOVER_WAITS", "the lease is held, but a disk cannot be opened here yet"},
    {"WAITS_HERE", NULL},
    /* the lease */
    {"LEASE_HELD", "the lease was taken"},
    {"LEASE_ADVANCED", "the lease moved to its next term"},
    {"LEASE_LOST", "the lease was lost, outputs were shut"},
    {"LEASE_REGAINED", "the lease is held again, and nobody was in between"},
    {"LEASE_NOT_RELEASED", "the lease could not be given up"},
    /* the engine */
    {"CODEC", "a codec was switched"},
    {"CAPTURE", "capture of dirty pages"},
    {"EPOCH_LENGTH", "the length of epochs was changed"},
    {"THROTTLE", "the guest was slowed down"},
    /* the link */
    {"LANE_LOST", "a connection of the link was lost"},
    {"LANE_BACK", NULL},
    {"LANE_MISSING", NULL},
    {"PATH_LOST", NULL},
    {"PATH_BACK", NULL},
    {"SPARE_MISSING", NULL},
    {"TRANSPORT_DEGRADED", NULL},
    {NULL, NULL},
};
