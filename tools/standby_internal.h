/* standby_internal.h - the standby from inside: standby.c (making it, serving the link, what the ends of sessions mean) and
 * takeover.c (the VM goes on here). */
#ifndef RP_TOOLS_STANDBY_INTERNAL_H
#define RP_TOOLS_STANDBY_INTERNAL_H

#include "replicator/link.h"
#include "replicator/replica.h"
#include "tools/enter.h"
#include "tools/standby.h"

#include <pthread.h>

enum rp_standby_state {
    RP_STANDBY_WAITING, RP_STANDBY_SYNCING, RP_STANDBY_READY, RP_STANDBY_ALONE, RP_STANDBY_HANDED_OVER, RP_STANDBY_BEHIND,
    RP_STANDBY_TAKING,
};

struct rp_standby {
    struct rp_vm *vm;
    struct rp_vm_options *o;
    struct rp_entry *entry;         /* serving thread while it runs */
    struct rp_machine *machine;     /* likewise: made at the first whole epoch, around the image's RAM, its disks not open; NULL: not yet */
    struct rp_replica *replica;     /* copies of the VM's private disks; lives as long as the entry's image is fed */
    struct rp_link_recv *recv;
    pthread_t thread;
    bool serving;                   /* control: the thread is there */
    bool unusable;                  /* serving thread: no machine can be made here of what the primary sends */
    bool promoted, again;           /* control: the disks are the VM's; they could not be opened, and that may change */
    int event_fd;                   /* the serving thread has ended, or failed */
    int again_fd;                   /* a timer: the next attempt to take over is due */
    pthread_mutex_t admission;      /* from the fence's standing back until the state says so; no takeover is forced meanwhile. Before `lock` */
    char uri[400];
    pthread_mutex_t lock;
    enum rp_standby_state state;    /* lock */
    uint64_t since_wall_ns;         /* lock */
    char peer[80], last_peer[80];   /* lock: the primary of the session that goes on, "" none does; that of the one before */
    uint8_t vm_id[16];              /* lock: whose memory is held, or comes; all zero: nobody's yet */
    uint64_t epoch, term, epoch_wall_ns, applied;   /* lock: newest whole epoch, 0: none; how many there were */
    bool stale;                     /* lock: a primary has said that `epoch` may not be entered any more (S4) */
    char why[256];                  /* lock: how the last session ended */
    struct rp_link_outcome outcome; /* of the last session; serving thread; control once that has ended */
    struct rp_error failure;        /* likewise: the thread cannot go on */
};

/* standby.c */
void rp_standby_set_state(struct rp_standby *s, enum rp_standby_state state);
enum rp_standby_state rp_standby_state(struct rp_standby *s);
int rp_standby_serve(struct rp_standby *s, struct rp_error *err) RP_MUST_CHECK;
/* `hard`: whatever goes on; otherwise the thread is about to end by itself, and its connection stays. */
void rp_standby_end_serving(struct rp_standby *s, bool hard);
/* takeover.c: again_fd is readable. ctx: the standby. */
void rp_standby_on_again(void *ctx);

#endif
