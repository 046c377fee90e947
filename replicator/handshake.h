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
 * Every message has a fixed size (at most 256 bytes) and a time limit; a refusal says why in one sentence. The accepting side waits for
 * nobody before the key is proven: who begins a handshake and does not go on with it is in nobody's way (doors.h).
 */
#ifndef RP_REPLICATOR_HANDSHAKE_H
#define RP_REPLICATOR_HANDSHAKE_H

#include "core/stream.h"
#include "replicator/held.h"
#include "replicator/secret.h"
#include "replicator/transport.h"

#define RP_LINK_VERSION 4u
#define RP_HANDSHAKE_TIMEOUT_MS 3000    /* of the connecting side, for each answer */
#define RP_HELLO_BYTES 160u
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

/* The accepting side, as far as the other one's proof. All zero: nothing was heard yet. */
struct rp_greeting {
    uint8_t said[RP_HELLO_BYTES + RP_PROOF_BYTES];      /* HELLO, then PROOF: `have` bytes */
    size_t have;
    uint8_t nonce[RP_NONCE_BYTES];                      /* ours, once the HELLO is whole */
};
/* Takes what has come and answers it, without waiting. 0: more has to come; 1: the greeting is whole (whether the proof is right says
 * welcome); < 0: the connection can be closed, the other side was told why if it can be. */
int rp_handshake_hear(struct rp_greeting *g, struct rp_conn *c, const struct rp_secret *key, struct rp_error *err) RP_MUST_CHECK;

/* After that: `judge` sees the HELLO, if the key was proven; it returns 0 and fills in `welcome`, or < 0 with the reason in err, which the other
 * side is told. */
typedef int rp_handshake_judge(void *ctx, const struct rp_hello *hello, struct rp_welcome *welcome, struct rp_error *err);
int rp_handshake_welcome(const struct rp_greeting *g, struct rp_conn *c, const struct rp_secret *key, rp_handshake_judge *judge, void *ctx,
                         struct rp_hello *out, struct rp_error *err) RP_MUST_CHECK;

#endif
