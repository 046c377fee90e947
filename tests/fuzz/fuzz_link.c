/*
 * The link: handshake from both sides, control messages, lanes. Connections are memory: what is received is the input (with a good
 * proof of the key when it asks for one, and seals mended on lanes), what is sent is looked at and forgotten. A session always
 * ends, the image then holds a whole epoch or nothing, and a stranger gets nowhere.
 */
#include "core/clock.h"
#include "replicator/control.h"
#include "replicator/link.h"
#include "tests/fuzz/fuzz.h"

#include <errno.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#define FRAMES_MAX 64u
#define LANES_MAX 3u
#define HELLO_BYTES 160u
#define NONCE_AT 120u
#define SESSION_AT 104u
#define PATIENCE_MS 20u     /* what the control connection waits for lanes that wait for each other */

struct session;
struct fake {
    struct rp_conn base;
    struct session *s;
    uint8_t hello[HELLO_BYTES];
    bool good_proof, control;
    unsigned sent;          /* messages: challenge, welcome, … */
    struct rp_buf in;       /* what is received, after it what was handed out */
    size_t at;
    bool down;              /* s->lock */
};

struct session {
    struct rp_listener base;
    struct fake conns[1 + LANES_MAX];
    unsigned n, accepted;
    struct rp_secret key;
    uint8_t id[16];
    pthread_mutex_t lock;
    pthread_cond_t changed;
    unsigned busy;          /* lanes that have not met their end */
    struct rp_link_recv *recv;
};

static int readable_fd;     /* always readable */
static uint8_t *memory;
static struct rp_ram_view view;

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc, (void)argv;
    setenv("REPRISE_LOG", "error", 1);
    readable_fd = eventfd(1, EFD_CLOEXEC);
    memory = mmap(NULL, FRAMES_MAX * RP_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return readable_fd < 0 || memory == MAP_FAILED ? -1 : 0;
}

/* --- a connection --- */

static struct fake *of(struct rp_conn *c) { return (struct fake *)c; }

static void prove(struct fake *k, const uint8_t *challenge)
{
    uint8_t proof[RP_PROOF_BYTES] = {0};
    if (k->good_proof)
        rp_secret_prove(&k->s->key, "primary", k->hello + NONCE_AT, challenge + 8, k->hello, HELLO_BYTES, proof);
    struct rp_buf rest = k->in;
    k->in = (struct rp_buf){0};
    rp_buf_put(&k->in, k->hello, HELLO_BYTES);
    rp_buf_put(&k->in, proof, sizeof(proof));
    rp_buf_put(&k->in, rest.data, rest.len);
    rp_buf_fini(&rest);
}

static ssize_t fake_send(struct rp_conn *c, const struct iovec *iov, int n, bool wait)
{
    (void)wait;
    struct fake *k = of(c);
    size_t len = 0;
    for (int i = 0; i < n; i++)
        len += iov[i].iov_len;
    if (k->s && k->sent == 0 && len >= 8 + RP_NONCE_BYTES)
        prove(k, iov[0].iov_base);
    if (k->s && k->sent == 1 && k->control && len >= 20)
        memcpy(k->s->id, (const uint8_t *)iov[0].iov_base + 4, sizeof(k->s->id));
    k->sent++;
    return (ssize_t)len;
}

/* The control connection ends only when the lanes have, or wait for something that will not come. */
static void let_lanes_finish(struct session *s)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += PATIENCE_MS * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    pthread_mutex_lock(&s->lock);
    while (s->busy && pthread_cond_timedwait(&s->changed, &s->lock, &until) == 0)
        continue;
    pthread_mutex_unlock(&s->lock);
}

static void met_end(struct fake *k)
{
    pthread_mutex_lock(&k->s->lock);
    if (!k->down && !k->control)
        k->s->busy--;
    k->down = true;
    pthread_cond_broadcast(&k->s->changed);
    pthread_mutex_unlock(&k->s->lock);
}

static ssize_t fake_recv(struct rp_conn *c, void *buf, size_t len, int timeout_ms)
{
    (void)timeout_ms;
    struct fake *k = of(c);
    size_t n = k->in.len - k->at < len ? k->in.len - k->at : len;
    if (n == 0) {
        if (k->s && k->control)
            let_lanes_finish(k->s);
        if (k->s)
            met_end(k);
        return 0;
    }
    memcpy(buf, k->in.data + k->at, n);
    k->at += n;
    return (ssize_t)n;
}

static int fake_poll_fd(const struct rp_conn *c) { (void)c; return readable_fd; }
static void fake_shutdown(struct rp_conn *c) { if (of(c)->s) met_end(of(c)); }
static void fake_close(struct rp_conn *c) { (void)c; }
static const struct rp_conn_ops fake_ops = {.name = "fuzz", .send = fake_send, .recv = fake_recv, .poll_fd = fake_poll_fd,
                                            .shutdown = fake_shutdown, .close = fake_close};

static int next_accept(struct rp_listener *l, struct rp_conn **out, struct rp_error *err)
{
    (void)err;
    struct session *s = (struct session *)l;
    if (s->accepted == s->n) {
        rp_link_cancel(s->recv);
        return -EAGAIN;
    }
    struct fake *k = &s->conns[s->accepted++];
    if (!k->control)
        memcpy(k->hello + SESSION_AT, s->id, sizeof(s->id));
    memcpy(k->in.data, k->hello, HELLO_BYTES);
    *out = &k->base;
    return 0;
}
static int listener_fd(const struct rp_listener *l) { (void)l; return readable_fd; }
static void listener_close(struct rp_listener *l) { (void)l; }
static const struct rp_listener_ops listener_ops = {.accept = next_accept, .poll_fd = listener_fd, .close = listener_close};

/* --- the standby's side --- */

static int make_ram(void *ctx, const struct rp_epoch_header *h, struct rp_ram_view *out, struct rp_error *err)
{
    (void)ctx;
    if (h->gfn_end > FRAMES_MAX)
        return rp_error_exit(err, RP_EXIT_REFUSED, ENOMEM, "more memory than there is");
    view = (struct rp_ram_view){.base = memory, .gfn_end = h->gfn_end, .nregions = h->nregions};
    for (uint32_t i = 0; i < h->nregions; i++) {
        view.regions[i] = h->regions[i];
        view.pages += h->regions[i].pages;
    }
    *out = view;
    return 0;
}

static void hello(struct fz *f, struct fake *k, uint32_t role, uint32_t lanes)
{
    memset(k->hello, 0, sizeof(k->hello));
    memcpy(k->hello, "RPLINK\r\n", 8);
    rp_st32(k->hello + 8, RP_LINK_VERSION);
    rp_st32(k->hello + 12, role);
    rp_st32(k->hello + 16, lanes);
    rp_st32(k->hello + 20, 20);
    memset(k->hello + 24, 7, 16);
    memcpy(k->hello + 40, "golden", 6);
    for (unsigned i = fz_u8(f) % 4; i > 0; i--)
        k->hello[fz_u8(f) % HELLO_BYTES] = fz_u8(f);
}

static void control_bytes(struct fz *f, struct fake *k)
{
    for (unsigned i = fz_u8(f) % 16; i > 0; i--) {
        rp_buf_u32(&k->in, fz_u8(f) % 8);
        rp_buf_u32(&k->in, 0);
        rp_buf_u64(&k->in, fz_u64(f));
        rp_buf_u64(&k->in, fz_u8(f));
    }
}

/* A stream whose seals are good. */
static void lane_bytes(struct fz *f, struct fake *k, size_t share)
{
    size_t n, start = k->in.len, at = start;
    const uint8_t *p = fz_bytes(f, share, &n);
    rp_buf_put(&k->in, p, n);
    for (uint64_t seq = 0; k->in.len - at >= RP_RECORD_HEADER; seq++) {
        uint64_t whole = RP_RECORD_HEADER + (uint64_t)rp_ld32(k->in.data + at + 4);
        if (whole > k->in.len - at)
            break;
        struct rp_buf b = {.data = k->in.data + at, .len = (size_t)whole, .cap = (size_t)whole};
        rp_st16(b.data, RP_RECORD_MAGIC);
        if (rp_record_seal(&b, 0, seq) < 0)
            break;
        at += (size_t)whole;
    }
}

static void must_hold(const struct rp_image *image)
{
    if (!view.base)
        return;
    struct rp_hash128 is = rp_digest_of(&view), says = rp_image_digest(image)->sum;
    FZ_HOLDS(is.lo == says.lo && is.hi == says.hi && rp_image_staged_bytes(image) == 0);
    if (rp_image_epoch(image) == 0)
        FZ_HOLDS(is.lo == 0 && is.hi == 0);
}

static void standby(struct fz *f)
{
    static struct session s;
    struct rp_image *image;
    struct rp_image_ops ops = {.ram = make_ram};
    struct rp_link_outcome out;
    struct rp_error err = {0};
    uint8_t flags = fz_u8(f);
    s = (struct session){.base = {.ops = &listener_ops}, .n = 2 + fz_u8(f) % LANES_MAX, .key = {.len = 16, .bytes = "0123456789abcdef"}};
    pthread_mutex_init(&s.lock, NULL);
    pthread_cond_init(&s.changed, NULL);
    s.busy = s.n - 1;
    for (unsigned i = 0; i < s.n; i++) {
        struct fake *k = &s.conns[i];
        *k = (struct fake){.base = {.ops = &fake_ops, .peer = "fuzz"}, .s = &s, .control = i == 0, .good_proof = (flags >> i & 1) == 0};
        hello(f, k, i == 0 ? RP_LINK_CONTROL : RP_LINK_LANE, i == 0 ? s.n - 1 : 0);
        if (i > 0)
            rp_st32(k->hello + 16, s.n - 1);
        rp_buf_put(&k->in, k->hello, HELLO_BYTES);      /* refreshed when accepted; the proof goes behind it */
    }
    for (unsigned i = 0; i < s.n; i++) {    /* what comes after the handshake: put behind once the proof is known */
        struct rp_buf hello_only = s.conns[i].in;
        s.conns[i].in = (struct rp_buf){0};
        if (i == 0)
            control_bytes(f, &s.conns[i]);
        else
            lane_bytes(f, &s.conns[i], f->left / (s.n - i));
        struct rp_buf rest = s.conns[i].in;
        s.conns[i].in = hello_only;
        rp_buf_put(&s.conns[i].in, rest.data, rest.len);
        rp_buf_fini(&rest);
    }
    FZ_HOLDS(rp_image_create(RP_IMAGE_STAGED, &ops, 16 * RP_PAGE_SIZE, &image, NULL) == 0);
    struct rp_link_recv_config cfg = {.key = s.key, .vm_name = "golden", .timeout_ms = 1000, .image = image};
    FZ_HOLDS(rp_link_recv_create(&s.base, &cfg, &s.recv, NULL) == 0);
    int rc = rp_link_serve(s.recv, &out, &err);
    FZ_HOLDS(rc == 0 ? out.end >= RP_LINK_LOST && out.end <= RP_LINK_CANCELLED : err.text[0] != 0);
    must_hold(image);
    if (rc == 0 && out.end == RP_LINK_FINAL)
        rc = rp_link_recv_running(s.recv, &err);
    rp_link_recv_destroy(s.recv);
    rp_image_destroy(image);
    if (view.base)
        memset(memory, 0, FRAMES_MAX * RP_PAGE_SIZE);
    view = (struct rp_ram_view){0};
    for (unsigned i = 0; i < s.n; i++)
        rp_buf_fini(&s.conns[i].in);
    pthread_mutex_destroy(&s.lock);
    pthread_cond_destroy(&s.changed);
}

/* --- the primary's side of the handshake --- */

static void primary(struct fz *f)
{
    struct fake k = {.base = {.ops = &fake_ops, .peer = "fuzz"}};
    struct rp_secret key = {.len = 16, .bytes = "0123456789abcdef"};
    struct rp_hello h = {.role = RP_LINK_CONTROL, .lanes = 1, .heartbeat_ms = 20};
    struct rp_welcome w;
    struct rp_error err = {0};
    rp_buf_put(&k.in, f->p, f->left);
    int rc = rp_handshake_connect(&k.base, &key, &h, &w, &err);
    FZ_HOLDS(rc < 0 && err.text[0]);    /* nobody guesses the proof */
    for (const char *p = err.text; *p; p++)
        FZ_HOLDS((unsigned char)*p >= ' ');
    rp_buf_fini(&k.in);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fz f = {data, size};
    if (fz_u8(&f) % 8 == 0)
        primary(&f);
    else
        standby(&f);
    return 0;
}
