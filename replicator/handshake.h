/*
 * handshake.h - how two sides of a link come to believe each other, before any memory is spent. docs/link.md.
 *
 *   primary                                   standby
 *     HELLO  version, role, VM, nonce  ──────►   checks version and VM
 *        ◄──────  CHALLENGE  status, nonce, proof of the key over both nonces and the HELLO
 *     PROOF  of the key ─────────────────────►   checks
 *        ◄──────  WELCOME  status, session, epoch held, disks held, pages held
 *   (a control connection goes on with held.h, and sums.h)
 *
 * Every message has a fixed size (at most 256 bytes) and a time limit; a refusal says why in one sentence.
 */
#ifndef RP_REPLICATOR_HANDSHAKE_H
#define RP_REPLICATOR_HANDSHAKE_H

#include "core/stream.h"
#include "replicator/held.h"
#include "replicator/secret.h"
#include "replicator/transport.h"

#define RP_LINK_VERSION 4u
#define RP_HANDSHAKE_TIMEOUT_MS 3000    /* of the connecting side, for each answer */
#define RP_HANDSHAKE_ACCEPT_MS 1000     /* of the accepting side: others wait meanwhile */
#define RP_REASON_MAX 128

enum rp_link_role {
    RP_LINK_CONTROL = 1,    /* opens a session */
    RP_LINK_LANE = 2,       /* joins one: a lane */
    RP_LINK_PATH = 3,       /* joins one: a further path of its control connection */
};

struct rp_hello {
    uint32_t version;       /* filled in by connect */
    uint32_t role;
    uint32_t lanes;         /* control: how many lanes will follow at first; lane: its number */
    uint32_t heartbeat_ms;  /* control: what the primary sends and expects */
    uint8_t vm_id[16];
    char vm_name[64];
    uint8_t session[16];    /* lane, path: of the control connection's WELCOME */
    uint64_t holder;        /* control: the lease's holder, as a hash of its name; 0: it does not say */
    uint64_t term;          /* control: of the lease that the primary holds; 0: it does not say */
};
struct rp_welcome {
    uint8_t session[16];
    uint64_t epoch;         /* newest whole epoch the standby holds of this VM, 0: none */
    struct rp_disk_base disks;  /* what its copies of the VM's private disks hold; all zero: nothing */
    struct rp_held held;        /* the pages of its RAM there, of that epoch or of none */
};

/* The connecting side. RP_EXIT_REFUSED when the other side refuses or does not know the key. */
int rp_handshake_connect(struct rp_conn *c, const struct rp_secret *key, const struct rp_hello *hello,
                         struct rp_welcome *out, struct rp_error *err) RP_MUST_CHECK;

/* The accepting side: `judge` sees the HELLO after the key was proven; it returns 0 and fills in `welcome`, or < 0 with the
 * reason in err, which the other side is told. */
typedef int rp_handshake_judge(void *ctx, const struct rp_hello *hello, struct rp_welcome *welcome, struct rp_error *err);
int rp_handshake_accept(struct rp_conn *c, const struct rp_secret *key, rp_handshake_judge *judge, void *ctx,
                        struct rp_hello *out, struct rp_error *err) RP_MUST_CHECK;

#endif
