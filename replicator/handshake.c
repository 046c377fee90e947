#include "replicator/handshake.h"

#include "core/bytes.h"
#include "core/clock.h"
#include "core/fault.h"

#include <errno.h>
#include <stdio.h>

#define AT_ONCE 0               /* a deadline that is past: what there is no room for now is not waited for by somebody who is not known yet */
#define CHALLENGE_BYTES (8u + RP_NONCE_BYTES + RP_PROOF_BYTES + RP_REASON_MAX)
#define WELCOME_REASON (4u + 16u + 8u + 24u + 24u)
#define WELCOME_BYTES (WELCOME_REASON + RP_REASON_MAX)
static const uint8_t magic[8] = {'R', 'P', 'L', 'I', 'N', 'K', 0x0D, 0x0A};

enum status { STATUS_OK = 0, STATUS_REFUSED = 1 };

static void put_hello(const struct rp_hello *h, const uint8_t nonce[RP_NONCE_BYTES], uint8_t out[RP_HELLO_BYTES])
{
    memset(out, 0, RP_HELLO_BYTES);
    memcpy(out, magic, 8);
    rp_st32(out + 8, h->version);
    rp_st32(out + 12, h->role);
    rp_st32(out + 16, h->lanes);
    rp_st32(out + 20, h->heartbeat_ms);
    memcpy(out + 24, h->vm_id, 16);
    memcpy(out + 40, h->vm_name, 64);
    if (h->role == RP_LINK_CONTROL)
        rp_st64(out + 104, h->holder);
    else
        memcpy(out + 104, h->session, 16);
    memcpy(out + 120, nonce, RP_NONCE_BYTES);
    rp_st64(out + 152, h->term);
}

static void get_hello(const uint8_t in[RP_HELLO_BYTES], struct rp_hello *h, uint8_t nonce[RP_NONCE_BYTES])
{
    h->version = rp_ld32(in + 8);
    h->role = rp_ld32(in + 12);
    h->lanes = rp_ld32(in + 16);
    h->heartbeat_ms = rp_ld32(in + 20);
    memcpy(h->vm_id, in + 24, 16);
    memcpy(h->vm_name, in + 40, 64);
    h->vm_name[63] = '\0';
    memcpy(h->session, in + 104, 16);
    h->holder = h->role == RP_LINK_CONTROL ? rp_ld64(in + 104) : 0;
    memcpy(nonce, in + 120, RP_NONCE_BYTES);
    h->term = rp_ld64(in + 152);
}

static int io(struct rp_error *err, int rc, const char *what)
{
    return rc == 0 ? 0 : rp_error_set(err, rc, "the other side %s while %s", rc == -ETIMEDOUT ? "kept silent" : "went away", what);
}

static int refused(const uint8_t *text, struct rp_error *err)
{
    char why[RP_REASON_MAX];
    memcpy(why, text, sizeof(why));
    why[sizeof(why) - 1] = '\0';
    for (char *p = why; *p; p++)
        if ((unsigned char)*p < ' ')
            *p = '?';           /* a stranger's bytes do not reach a terminal */
    return rp_error_exit(err, RP_EXIT_REFUSED, EACCES, "refused by the other side: %s", why);
}

int rp_handshake_connect(struct rp_conn *c, const struct rp_secret *key, const struct rp_hello *hello, struct rp_welcome *out,
                         struct rp_error *err)
{
    struct rp_hello h = *hello;
    uint8_t mine[RP_NONCE_BYTES], proof[RP_PROOF_BYTES], want[RP_PROOF_BYTES];
    uint8_t msg[RP_HELLO_BYTES], challenge[CHALLENGE_BYTES], welcome[WELCOME_BYTES];
    h.version = RP_LINK_VERSION;
    int rc = rp_secret_nonce(mine, err);
    if (rc < 0)
        return rc;
    put_hello(&h, mine, msg);
    if (rp_fault(RP_FAULT_LINK_HELLO))
        return rp_error_set(err, EIO, "sending HELLO: fault point");
    if ((rc = io(err, rp_conn_send(c, msg, sizeof(msg)), "greeting it")) < 0 ||
        (rc = io(err, rp_conn_recv_all(c, challenge, sizeof(challenge), rp_clock_ns() + RP_HANDSHAKE_TIMEOUT_MS * 1000000ull), "waiting for its challenge")) < 0)
        return rc;
    if (rp_ld32(challenge) != STATUS_OK)
        return refused(challenge + 8 + RP_NONCE_BYTES + RP_PROOF_BYTES, err);
    const uint8_t *theirs = challenge + 8;
    rp_secret_prove(key, "standby", theirs, mine, msg, RP_HELLO_BYTES, want);
    if (!rp_secret_equal(want, theirs + RP_NONCE_BYTES))
        return rp_error_exit(err, RP_EXIT_REFUSED, EACCES, "the other side does not know our key");
    rp_secret_prove(key, "primary", mine, theirs, msg, RP_HELLO_BYTES, proof);
    if ((rc = io(err, rp_conn_send(c, proof, sizeof(proof)), "proving our key")) < 0 ||
        (rc = io(err, rp_conn_recv_all(c, welcome, sizeof(welcome), rp_clock_ns() + RP_HANDSHAKE_TIMEOUT_MS * 1000000ull), "waiting for its welcome")) < 0)
        return rc;
    if (rp_ld32(welcome) != STATUS_OK)
        return refused(welcome + WELCOME_REASON, err);
    memcpy(out->session, welcome + 4, 16);
    out->epoch = rp_ld64(welcome + 20);
    memcpy(out->disks.sync_id, welcome + 28, 16);
    out->disks.epoch = rp_ld64(welcome + 44);
    out->held.gfn_end = rp_ld64(welcome + 52);
    out->held.sum = (struct rp_hash128){rp_ld64(welcome + 60), rp_ld64(welcome + 68)};
    return 0;
}

static void refuse_hello(struct rp_conn *c, const char *why)
{
    uint8_t challenge[CHALLENGE_BYTES] = {0};
    rp_st32(challenge, STATUS_REFUSED);
    rp_st32(challenge + 4, RP_LINK_VERSION);
    strncpy((char *)challenge + 8 + RP_NONCE_BYTES + RP_PROOF_BYTES, why, RP_REASON_MAX - 1);
    if (rp_conn_send_by(c, challenge, sizeof(challenge), AT_ONCE) < 0) {
        /* it has gone: so much the better */
    }
}

static int check_hello(const uint8_t *msg, const struct rp_hello *h, const char **why)
{
    *why = NULL;
    if (memcmp(msg, magic, sizeof(magic)) != 0)
        *why = "this is a reprise standby, and that was no greeting of its protocol";
    else if (h->version != RP_LINK_VERSION)
        *why = "the two sides speak different versions of the link protocol";
    else if (h->role < RP_LINK_CONTROL || h->role > RP_LINK_PATH)
        *why = "unknown role";
    return *why ? -EPROTO : 0;
}

/* The HELLO is whole. */
static int challenge_it(struct rp_greeting *g, struct rp_conn *c, const struct rp_secret *key, struct rp_error *err)
{
    struct rp_hello h;
    uint8_t theirs[RP_NONCE_BYTES], challenge[CHALLENGE_BYTES] = {0};
    const char *why;
    get_hello(g->said, &h, theirs);
    int rc = check_hello(g->said, &h, &why);
    if (rc < 0) {
        refuse_hello(c, why);
        return rp_error_exit(err, RP_EXIT_REFUSED, rc, "a stranger was refused: %s", why);
    }
    rc = rp_secret_nonce(g->nonce, err);
    if (rc < 0)
        return rc;
    rp_st32(challenge + 4, RP_LINK_VERSION);
    memcpy(challenge + 8, g->nonce, RP_NONCE_BYTES);
    rp_secret_prove(key, "standby", g->nonce, theirs, g->said, RP_HELLO_BYTES, challenge + 8 + RP_NONCE_BYTES);
    return io(err, rp_conn_send_by(c, challenge, sizeof(challenge), AT_ONCE), "being challenged");
}

int rp_handshake_hear(struct rp_greeting *g, struct rp_conn *c, const struct rp_secret *key, struct rp_error *err)
{
    while (g->have < sizeof(g->said)) {
        size_t whole = g->have < RP_HELLO_BYTES ? RP_HELLO_BYTES : sizeof(g->said);
        ssize_t n = c->ops->recv(c, g->said + g->have, whole - g->have, RP_CONN_NOW);
        if (n == -EAGAIN)
            return 0;
        if (n <= 0)
            return io(err, n < 0 ? (int)n : -ECONNRESET, g->have < RP_HELLO_BYTES ? "it should have said HELLO" : "it should have proven its key");
        g->have += (size_t)n;
        int rc = g->have == RP_HELLO_BYTES ? challenge_it(g, c, key, err) : 0;
        if (rc < 0)
            return rc;
    }
    return 1;
}

int rp_handshake_welcome(const struct rp_greeting *g, struct rp_conn *c, const struct rp_secret *key, rp_handshake_judge *judge, void *ctx,
                         struct rp_hello *out, struct rp_error *err)
{
    struct rp_hello h;
    struct rp_welcome w = {0};
    struct rp_error refusal = {0};
    uint8_t theirs[RP_NONCE_BYTES], want[RP_PROOF_BYTES], welcome[WELCOME_BYTES] = {0};
    int rc;
    get_hello(g->said, &h, theirs);
    rp_secret_prove(key, "primary", theirs, g->nonce, g->said, RP_HELLO_BYTES, want);
    if (!rp_secret_equal(want, g->said + RP_HELLO_BYTES))
        rc = rp_error_exit(&refusal, RP_EXIT_REFUSED, EACCES, "wrong key");
    else
        rc = judge(ctx, &h, &w, &refusal);
    if (rc == 0 && h.role == RP_LINK_LANE && c->ops->widen)
        rc = c->ops->widen(c, &refusal);    /* a lane of somebody we know: now memory may be spent on it */
    rp_st32(welcome, rc == 0 ? STATUS_OK : STATUS_REFUSED);
    memcpy(welcome + 4, w.session, 16);
    rp_st64(welcome + 20, w.epoch);
    memcpy(welcome + 28, w.disks.sync_id, 16);
    rp_st64(welcome + 44, w.disks.epoch);
    rp_st64(welcome + 52, w.held.gfn_end);
    rp_st64(welcome + 60, w.held.sum.lo);
    rp_st64(welcome + 68, w.held.sum.hi);
    snprintf((char *)welcome + WELCOME_REASON, RP_REASON_MAX, "%s", refusal.text);
    int sent = rp_conn_send_by(c, welcome, sizeof(welcome), AT_ONCE);
    if (rc < 0) {
        if (err)
            *err = refusal;
        return rp_error_wrap(err, "a connection was refused");
    }
    *out = h;
    return io(err, sent, "being welcomed");
}
