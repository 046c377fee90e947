/*
 * The link, part by part: frames, lanes that gather them into an image, the handshake from both sides, control messages. Connections
 * are memory: what is received is the input (with a good proof of the key when it asks for one, seals mended), what is sent is looked
 * at and forgotten. Everything ends, the image then holds a whole epoch or nothing, and a stranger gets nowhere.
 */
#include "core/image.h"
#include "replicator/control.h"
#include "replicator/frame.h"
#include "replicator/gather.h"
#include "replicator/handshake.h"
#include "replicator/sums.h"
#include "tests/fuzz/fuzz.h"
#include "tests/unit/shake_hands.h"

#include <errno.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#define FRAMES_MAX 64u      /* of guest memory */
#define LANES_MAX 3u
#define NONCE_AT 120u

struct fake {
    struct rp_conn base;
    uint8_t *bytes;         /* owned: what is received */
    size_t len, at;
    unsigned sent;          /* messages */
    /* the standby's side of a handshake: a HELLO, then its proof */
    const struct rp_secret *key;
    bool good_proof;
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

static ssize_t fake_send(struct rp_conn *c, const struct iovec *iov, int n, bool wait)
{
    struct fake *k = of(c);
    size_t len = 0;
    (void)wait;
    for (int i = 0; i < n; i++)
        len += iov[i].iov_len;
    if (k->key && k->sent == 0 && k->good_proof && len >= 8 + RP_NONCE_BYTES && k->len >= RP_HELLO_BYTES + RP_PROOF_BYTES)
        rp_secret_prove(k->key, "primary", k->bytes + NONCE_AT, (const uint8_t *)iov[0].iov_base + 8, k->bytes, RP_HELLO_BYTES,
                        k->bytes + RP_HELLO_BYTES);
    k->sent++;
    return (ssize_t)len;
}

static ssize_t fake_recv(struct rp_conn *c, void *buf, size_t len, int timeout_ms)
{
    struct fake *k = of(c);
    size_t n = k->len - k->at < len ? k->len - k->at : len;
    (void)timeout_ms;
    memcpy(buf, k->bytes + k->at, n);
    k->at += n;
    return (ssize_t)n;
}

static int fake_poll_fd(const struct rp_conn *c) { (void)c; return readable_fd; }
static void fake_shutdown(struct rp_conn *c) { (void)c; }
static void fake_close(struct rp_conn *c)
{
    free(of(c)->bytes);
    free(c);
}
static const struct rp_conn_ops fake_ops = {.name = "fuzz", .send = fake_send, .recv = fake_recv, .poll_fd = fake_poll_fd,
                                            .shutdown = fake_shutdown, .close = fake_close};

static struct fake *fake_make(const uint8_t *p, size_t n)
{
    struct fake *k = calloc(1, sizeof(*k));
    k->base = (struct rp_conn){.ops = &fake_ops, .peer = "fuzz"};
    k->bytes = malloc(n + 1);
    k->len = n;
    if (n)
        memcpy(k->bytes, p, n);
    return k;
}

/* --- frames and lanes --- */

static uint8_t *mend_records(uint8_t *p, size_t len)
{
    size_t at = 0;
    for (uint64_t seq = 0; len - at >= RP_RECORD_HEADER; seq++) {
        uint64_t whole = RP_RECORD_HEADER + (uint64_t)rp_ld32(p + at + 4);
        if (whole > len - at)
            break;
        struct rp_buf b = {.data = p + at, .len = (size_t)whole, .cap = (size_t)whole};
        rp_st16(b.data, RP_RECORD_MAGIC);
        if (rp_record_seal(&b, 0, seq) < 0)
            break;
        at += (size_t)whole;
    }
    return p;
}

static void frame_alone(struct fz *f)
{
    struct rp_error err = {0};
    uint32_t len = 0, pos = 0, records = 0;
    uint64_t number;
    uint8_t header[RP_FRAME_HEADER] = {0};
    size_t n;
    const uint8_t *p = fz_bytes(f, sizeof(header), &n);
    memcpy(header, p, n);
    int rc = rp_frame_get_header(header, &len, &number, &err);
    FZ_HOLDS(rc == 0 ? len <= RP_FRAME_MAX : rc == -EBADMSG && err.text[0]);
    uint8_t *copy = malloc(f->left ? f->left : 1);
    memcpy(copy, f->p, f->left);
    mend_records(copy, f->left);
    err = (struct rp_error){0};
    rc = rp_frame_check(copy, (uint32_t)f->left, &err);
    FZ_HOLDS(rc == 0 || err.text[0]);
    struct rp_record r;
    while (rc == 0 && rp_frame_next(copy, (uint32_t)f->left, &pos, &r)) {
        FZ_HOLDS(r.payload >= copy && r.payload + r.len <= copy + f->left && r.seq == records);
        records++;
    }
    FZ_HOLDS(rc < 0 || pos == f->left);
    free(copy);
}

struct far {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct rp_image *image;
    uint64_t taken;
    unsigned lanes, refused;
};

static int far_feed(void *ctx, const struct rp_record *r, struct rp_error *err)
{
    return rp_image_feed(((struct far *)ctx)->image, r, err);
}

static int far_taken(void *ctx, uint64_t number, uint64_t bytes, bool epoch, struct rp_error *err)
{
    struct far *x = ctx;
    (void)bytes, (void)epoch, (void)err;
    FZ_HOLDS(number > x->taken);
    x->taken = number;
    return 0;
}

static void far_refused(void *ctx, int rc, const struct rp_error *why)
{
    struct far *x = ctx;
    FZ_HOLDS(rc < 0 && why->text[0]);
    pthread_mutex_lock(&x->lock);
    x->refused++;
    pthread_cond_signal(&x->changed);
    pthread_mutex_unlock(&x->lock);
}

static void far_lane_ended(void *ctx, unsigned lane, const char *transport, int rc, unsigned left)
{
    struct far *x = ctx;
    (void)lane, (void)transport, (void)rc, (void)left;
    pthread_mutex_lock(&x->lock);
    x->lanes--;
    pthread_cond_signal(&x->changed);
    pthread_mutex_unlock(&x->lock);
}

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

/* A lane's bytes: frames of the input, their headers and records mended, numbers as the input says (near the next one). */
static struct fake *lane(struct fz *f, size_t share)
{
    struct rp_buf b = {0};
    uint64_t number = fz_u8(f) % 3;
    size_t n, end = f->left > share ? f->left - share : 0;
    while (f->left > end) {
        number += (uint64_t)fz_u8(f) % 4;
        const uint8_t *p = fz_bytes(f, fz_u16(f) % 12000, &n);
        uint8_t *h = rp_buf_extend(&b, RP_FRAME_HEADER);
        FZ_HOLDS(h != NULL);
        rp_frame_put_header(h, (uint32_t)n, number);
        rp_buf_put(&b, p, n);
        FZ_HOLDS(!b.failed);
        mend_records(b.data + b.len - n, n);
    }
    struct fake *k = fake_make(b.data, b.len);
    rp_buf_fini(&b);
    return k;
}

static void lanes(struct fz *f)
{
    struct far x = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
    struct rp_image_ops ops = {.ram = make_ram};
    struct rp_gather_events events = {.ctx = &x, .feed = far_feed, .taken = far_taken, .refused = far_refused, .lane_ended = far_lane_ended};
    struct rp_gather *g;
    unsigned n = 1 + fz_u8(f) % LANES_MAX;
    FZ_HOLDS(rp_image_create(RP_IMAGE_STAGED, &ops, 16 * RP_PAGE_SIZE, &x.image, NULL) == 0);
    FZ_HOLDS(rp_gather_create(&events, &g, NULL) == 0);
    for (unsigned i = 0; i < n; i++) {
        struct fake *k = lane(f, f->left / (n - i));
        pthread_mutex_lock(&x.lock);
        x.lanes++;
        pthread_mutex_unlock(&x.lock);
        if (rp_gather_add(g, &k->base, i, NULL) < 0) {      /* an earlier lane was refused */
            pthread_mutex_lock(&x.lock);
            x.lanes--;
            pthread_mutex_unlock(&x.lock);
        }
    }
    pthread_mutex_lock(&x.lock);
    while (x.lanes && !x.refused)       /* memory ends, and so do they; what was refused is told once, then nothing */
        pthread_cond_wait(&x.changed, &x.lock);
    pthread_mutex_unlock(&x.lock);
    rp_gather_destroy(g);
    FZ_HOLDS(x.refused <= 1);
    rp_image_drop(x.image);
    if (view.base) {
        struct rp_hash128 is = rp_digest_of(&view), says = rp_image_digest(x.image)->sum;
        FZ_HOLDS(is.lo == says.lo && is.hi == says.hi && rp_image_staged_bytes(x.image) == 0);
        memset(memory, 0, FRAMES_MAX * RP_PAGE_SIZE);
    }
    view = (struct rp_ram_view){0};
    rp_image_destroy(x.image);
}

/* --- handshakes --- */

static const struct rp_secret key = {.len = 16, .bytes = "0123456789abcdef"};

static int judge(void *ctx, const struct rp_hello *h, struct rp_welcome *w, struct rp_error *err)
{
    (void)w;
    *(bool *)ctx = true;
    FZ_HOLDS(memchr(h->vm_name, 0, sizeof(h->vm_name)) != NULL && h->version == RP_LINK_VERSION);
    return h->lanes > 16 ? rp_error_set(err, EPROTO, "too many") : 0;
}

static void standby(struct fz *f)
{
    uint8_t in[RP_HELLO_BYTES + RP_PROOF_BYTES] = "RPLINK\r\n";
    struct rp_hello hello;
    struct rp_error err = {0};
    bool judged = false, good = fz_u8(f) & 1;
    rp_st32(in + 8, RP_LINK_VERSION);
    rp_st32(in + 12, 1 + fz_u8(f) % 3);
    for (unsigned i = fz_u8(f) % 16; i > 0; i--)
        in[8 + fz_u8(f) % (RP_HELLO_BYTES - 8)] = fz_u8(f);
    size_t cut = fz_u8(f) % 4 ? sizeof(in) : fz_u8(f);
    struct fake *k = fake_make(in, cut < sizeof(in) ? cut : sizeof(in));
    k->key = &key;
    k->good_proof = good;
    int rc = shake_hands(&k->base, &key, judge, &judged, &hello, &err);
    FZ_HOLDS(rc == 0 ? judged && good : err.text[0] != 0);
    FZ_HOLDS(good || !judged);      /* nobody is looked at who did not prove the key */
    rp_conn_close(&k->base);
}

static void primary(struct fz *f)
{
    struct fake *k = fake_make(f->p, f->left);
    struct rp_hello h = {.role = RP_LINK_CONTROL, .lanes = 1, .heartbeat_ms = 20};
    struct rp_welcome w;
    struct rp_error err = {0};
    int rc = rp_handshake_connect(&k->base, &key, &h, &w, &err);
    FZ_HOLDS(rc < 0 && err.text[0]);        /* nobody guesses the proof */
    for (const char *p = err.text; *p; p++)
        FZ_HOLDS((unsigned char)*p >= ' ');
    rp_conn_close(&k->base);
}

/* What a standby says that it holds. */
static void held(struct fz *f)
{
    struct rp_held h = {.gfn_end = 1 + fz_u16(f) % 3000, .sum = {fz_u8(f), fz_u8(f)}};
    struct rp_held_ask ask;
    struct rp_hash128 *pages = NULL, sum = {0, 0};
    struct rp_error err = {0};
    struct fake *k = fake_make(f->p, f->left);
    if (rp_held_receive_ask(&k->base, &ask, &err) == 0 && rp_held_receive(&k->base, &h, &pages, &err) == 0) {
        for (uint64_t g = 0; g < h.gfn_end; g++) {
            sum.lo += pages[g].lo;
            sum.hi += pages[g].hi;
        }
        FZ_HOLDS(sum.lo == h.sum.lo && sum.hi == h.sum.hi);
        free(pages);
    } else {
        FZ_HOLDS(err.text[0]);
    }
    rp_conn_close(&k->base);
}

/* … and of disks. Nothing is kept but sums of blocks that our disks have. */
static void sums(struct fz *f)
{
    uint64_t sizes[RP_DISK_SUMS_DISKS];
    struct rp_disk_sums got = {0};
    struct rp_error err = {0};
    for (unsigned i = 0; i < RP_DISK_SUMS_DISKS; i++) {
        uint64_t pages = fz_u16(f);
        sizes[i] = fz_u8(f) % 2 ? pages * RP_PAGE_SIZE : 0;
    }
    struct fake *k = fake_make(f->p, f->left);
    if (rp_sums_receive(&k->base, sizes, &got, &err) == 0) {
        for (unsigned i = 0; i < RP_DISK_SUMS_DISKS; i++) {
            const struct rp_disk_sum_list *l = &got.disks[i];
            FZ_HOLDS(!l->blocks || (l->sums && rp_disk_sums_possible(l->block_bytes, l->blocks) && (uint64_t)l->blocks * l->block_bytes <= sizes[i]));
        }
        rp_disk_sums_fini(&got);
    } else {
        FZ_HOLDS(err.text[0]);
        for (unsigned i = 0; i < RP_DISK_SUMS_DISKS; i++)
            FZ_HOLDS(!got.disks[i].sums);
    }
    rp_conn_close(&k->base);
}

static void control(struct fz *f)
{
    struct rp_control c;
    struct rp_control_msg m;
    unsigned paths = 1 + fz_u8(f) % 2, got = 0;
    FZ_HOLDS(rp_control_init(&c, NULL) == 0);
    size_t left = f->left;
    for (unsigned i = 0; i < paths; i++) {
        size_t n;
        const uint8_t *p = fz_bytes(f, f->left / (paths - i), &n);
        FZ_HOLDS(rp_control_add(&c, &fake_make(p, n)->base, (int)i) == 0);
    }
    char reason[RP_CONTROL_REASON] = "";
    while (rp_control_recv(&c, &m, 1000) == 0) {
        got++;
        rp_control_reason(&m, reason);
        FZ_HOLDS(memchr(reason, 0, sizeof(reason)) && !strpbrk(reason, "\n\r\033"));
        FZ_HOLDS(got <= left / RP_CONTROL_BYTES + paths);
    }
    FZ_HOLDS(rp_control_living(&c) == 0);
    rp_control_fini(&c);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fz f = {data, size};
    switch (fz_u8(&f) % 8) {
    case 0: primary(&f); break;
    case 1: standby(&f); break;
    case 2: control(&f); break;
    case 3: frame_alone(&f); break;
    case 4: held(&f); break;
    case 5: sums(&f); break;
    default: lanes(&f); break;
    }
    return 0;
}
