/*
 * The host's side of vsock between a hostile guest (packets with any header) and hostile host programs (greetings, bytes, hang-ups).
 * What must hold: bytes of a connection arrive in order and once, in both directions; the guest is never sent more than it has room
 * for; the table is bounded; after a reset nothing is left.
 */
#include "tests/fuzz/fuzz.h"
#include "vmm/loop.h"
#include "vmm/vsock.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/virtio_vsock.h>
#include <pthread.h>
#include <sys/socket.h>
#include <sys/un.h>

#define LISTENERS 2u
#define PORT_FIRST 1000u        /* of the listeners */
#define CONNS 64u               /* that the model follows in one input */
#define CALLERS 8u
#define ACTIONS_MAX 300u

/* A connection as the test knows it. Byte n of what its guest sends is to_host(i, n), of what its host sends to_guest(i, n). */
struct model {
    uint32_t host_port, guest_port;
    int fd;                     /* the host program's; -1: it hung up */
    uint64_t guest_sent, host_got, host_sent, guest_got;
    unsigned ok_left;           /* bytes of "OK n\n" that come first */
    uint32_t alloc, fwd;        /* the guest's credit as it said last */
};
static struct {
    pthread_mutex_t lock;
    struct rp_loop *loop;
    struct rp_vsock *v;
    struct sockaddr_un at;
    int listener[LISTENERS];
    struct model c[CONNS];
    unsigned n;
    uint32_t next_port;
    struct { int fd; uint32_t port; } caller[CALLERS];  /* host programs that said CONNECT and have no answer */
} m;
static uint8_t payload[RP_VSOCK_PAYLOAD_MAX];

static uint8_t to_host(unsigned i, uint64_t n) { return (uint8_t)(i * 29 + n * 7 + n / 256); }
static uint8_t to_guest(unsigned i, uint64_t n) { return (uint8_t)(i * 13 + n * 5 + n / 256 + 1); }
static void on_wake(void *ctx) { (void)ctx; }

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    static char folder[64];
    struct rp_error err = {0};
    (void)argc, (void)argv;
    setenv("REPRISE_LOG", "error", 1);
    fz_folder(folder);
    m.at.sun_family = AF_UNIX;
    pthread_mutex_init(&m.lock, NULL);
    for (unsigned i = 0; i < LISTENERS; i++) {
        struct sockaddr_un a = {.sun_family = AF_UNIX};
        snprintf(a.sun_path, sizeof(a.sun_path), "%s/v_%u", folder, PORT_FIRST + i);
        m.listener[i] = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        FZ_HOLDS(bind(m.listener[i], (struct sockaddr *)&a, sizeof(a)) == 0 && listen(m.listener[i], 64) == 0);
    }
    snprintf(m.at.sun_path, sizeof(m.at.sun_path), "%s/v", folder);
    FZ_HOLDS(rp_loop_create(&m.lock, &m.loop, &err) == 0);
    FZ_HOLDS(rp_vsock_create(m.loop, m.at.sun_path, on_wake, NULL, &m.v, &err) == 0);
    return 0;
}

/* The newest of these ports; NULL. */
static struct model *find(uint32_t host_port, uint32_t guest_port)
{
    for (unsigned i = m.n; i-- > 0;)
        if (m.c[i].host_port == host_port && m.c[i].guest_port == guest_port)
            return &m.c[i];
    return NULL;
}

static struct model *add(uint32_t host_port, uint32_t guest_port, int fd)
{
    if (m.n == CONNS) {
        close(fd);
        return NULL;
    }
    m.c[m.n] = (struct model){.host_port = host_port, .guest_port = guest_port, .fd = fd};
    return &m.c[m.n++];
}

/* --- the guest --- */

static void fill(struct model *c, uint32_t len)
{
    for (uint32_t k = 0; k < len; k++)
        payload[k] = to_host((unsigned)(c - m.c), c->guest_sent + k);
    c->guest_sent += len;       /* when it is refused, the connection is over and no other byte of it follows */
}

static void guest_sends(struct fz *f)
{
    static const uint32_t allocs[] = {0, 1, 100, 65536, 1u << 20, UINT32_MAX};
    unsigned odd = fz_u8(f);
    struct model *c = m.n && !(odd & 1) ? &m.c[fz_u8(f) % m.n] : NULL;
    struct rp_vsock_hdr h = {.src_port = 5 + fz_u8(f) % 4, .dst_port = PORT_FIRST + fz_u8(f) % 4, .type = VIRTIO_VSOCK_TYPE_STREAM};
    if (c) {
        h.src_port = c->guest_port;
        h.dst_port = c->host_port;
    }
    h.op = fz_u8(f) % 9;
    h.flags = fz_u8(f) % 4;
    h.buf_alloc = allocs[fz_u8(f) % 6];
    h.fwd_cnt = c && !(odd & 2) ? (uint32_t)c->guest_got : fz_u32(f);
    if (odd & 4)
        h.type = fz_u16(f);
    if (odd & 8)
        h.op = fz_u16(f);
    if (odd & 16)
        h.src_port = fz_u32(f);
    if (odd & 32)
        h.flags = fz_u32(f);
    c = find(h.dst_port, h.src_port);
    h.len = fz_u8(f) * (odd & 64 ? 256u : 1u);
    if (c && c->fd >= 0 && h.op == VIRTIO_VSOCK_OP_RW && h.type == VIRTIO_VSOCK_TYPE_STREAM)
        fill(c, h.len);
    if (c && h.type == VIRTIO_VSOCK_TYPE_STREAM) {
        c->alloc = h.buf_alloc;
        c->fwd = h.fwd_cnt;
    }
    rp_vsock_from_guest(m.v, &h, payload);
    for (unsigned i = 0; i < LISTENERS; i++) {
        int fd = accept4(m.listener[i], NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0)
            continue;
        FZ_HOLDS(h.op == VIRTIO_VSOCK_OP_REQUEST && h.dst_port == PORT_FIRST + i);
        if ((c = add(h.dst_port, h.src_port, fd))) {
            c->alloc = h.buf_alloc;
            c->fwd = h.fwd_cnt;
        }
    }
}

/* A connection that a host program asked for, and may have left since, is asked of the guest. */
static void asked(const struct rp_vsock_hdr *h)
{
    for (unsigned i = 0; i < CALLERS; i++) {
        if (m.caller[i].fd < 0 || m.caller[i].port != h->dst_port)
            continue;
        struct model *c = add(h->src_port, h->dst_port, m.caller[i].fd);
        m.caller[i].fd = -1;
        if (c)
            c->ok_left = (unsigned)snprintf(NULL, 0, "OK %u\n", h->src_port);
        return;
    }
}

static void guest_takes(struct fz *f)
{
    static const uint32_t rooms[] = {1, 60, 4096, 1u << 20};
    uint32_t room = rooms[fz_u8(f) % 4];
    struct rp_vsock_hdr h;
    const uint8_t *p;
    if (!rp_vsock_to_guest(m.v, room, &h, &p))
        return;
    FZ_HOLDS(h.type == VIRTIO_VSOCK_TYPE_STREAM && h.len <= room && (h.len > 0) == (h.op == VIRTIO_VSOCK_OP_RW));
    FZ_HOLDS(h.op >= VIRTIO_VSOCK_OP_REQUEST && h.op <= VIRTIO_VSOCK_OP_CREDIT_UPDATE);
    if (h.op == VIRTIO_VSOCK_OP_REQUEST)
        asked(&h);
    struct model *c = find(h.src_port, h.dst_port);
    if (h.op != VIRTIO_VSOCK_OP_RW || !c)
        return;
    uint32_t used = (uint32_t)c->guest_got - c->fwd;
    FZ_HOLDS(used < c->alloc && h.len <= c->alloc - used);
    for (uint32_t k = 0; k < h.len; k++)
        FZ_HOLDS(p[k] == to_guest((unsigned)(c - m.c), c->guest_got + k));
    c->guest_got += h.len;
    FZ_HOLDS(c->guest_got <= c->host_sent);
}

/* --- host programs --- */

static void host_calls(struct fz *f)
{
    unsigned what = fz_u8(f), i = what % CALLERS;
    size_t n;
    char text[32];
    if (m.caller[i].fd >= 0) {
        close(m.caller[i].fd);      /* lost patience */
        m.caller[i].fd = -1;
        return;
    }
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (connect(fd, (struct sockaddr *)&m.at, sizeof(m.at)) < 0) {
        close(fd);                  /* many wait to be accepted */
        return;
    }
    m.caller[i].fd = fd;
    m.caller[i].port = m.next_port++;   /* each its own, so that it is known whose request comes */
    if (what & 8) {
        const uint8_t *p = fz_bytes(f, fz_u8(f) % 40, &n);
        FZ_HOLDS(send(fd, p, n, MSG_NOSIGNAL) == (ssize_t)n);
        close(fd);
        m.caller[i].fd = -1;
        return;
    }
    n = (size_t)snprintf(text, sizeof(text), "CONNECT %u\n", m.caller[i].port);
    FZ_HOLDS(send(fd, text, n, MSG_NOSIGNAL) == (ssize_t)n);
}

static void host_sends(struct model *c, uint32_t len)
{
    for (uint32_t k = 0; k < len; k++)
        payload[k] = to_guest((unsigned)(c - m.c), c->host_sent + k);
    ssize_t n = send(c->fd, payload, len, MSG_NOSIGNAL | MSG_DONTWAIT);
    c->host_sent += n > 0 ? (uint64_t)n : 0;
}

static void host_reads(struct model *c)
{
    static uint8_t got[4096];
    for (ssize_t n; (n = recv(c->fd, got, sizeof(got), MSG_DONTWAIT)) > 0;) {
        for (ssize_t k = 0; k < n; k++) {
            if (c->ok_left) {
                c->ok_left--;
                continue;
            }
            FZ_HOLDS(c->host_got < c->guest_sent && got[k] == to_host((unsigned)(c - m.c), c->host_got));
            c->host_got++;
        }
    }
}

static void host_acts(struct fz *f)
{
    if (m.n == 0)
        return;
    struct model *c = &m.c[fz_u8(f) % m.n];
    unsigned what = fz_u8(f);
    if (c->fd < 0)
        return;
    switch (what % 8) {
    case 0: host_reads(c); close(c->fd); c->fd = -1; break;
    case 1: shutdown(c->fd, what & 8 ? SHUT_WR : SHUT_RD); break;
    case 2: case 3: host_reads(c); break;
    default: host_sends(c, fz_u8(f) * (what & 64 ? 250u : 1u)); break;
    }
}

static void turn(void)
{
    pthread_mutex_unlock(&m.lock);
    for (unsigned i = 0; i < 32 && rp_loop_turn(m.loop); i++)
        continue;
    pthread_mutex_lock(&m.lock);
}

static void act(struct fz *f)
{
    switch (fz_u8(f) % 8) {
    case 0: case 1: case 2: guest_sends(f); break;
    case 3: guest_takes(f); break;
    case 4: host_acts(f); break;
    case 5: host_calls(f); break;
    case 6: turn(); break;
    default:
        for (unsigned i = fz_u8(f); i > 0; i--)
            guest_takes(f);
        break;
    }
    FZ_HOLDS(rp_vsock_connections(m.v) <= RP_VSOCK_CONNS_MAX);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    struct fz f = {bytes, size};
    m.n = 0;
    m.next_port = 2000;
    for (unsigned i = 0; i < CALLERS; i++)
        m.caller[i].fd = -1;
    pthread_mutex_lock(&m.lock);
    for (unsigned i = 0; i < ACTIONS_MAX && f.left > 0; i++)
        act(&f);
    turn();
    rp_vsock_reset(m.v);
    FZ_HOLDS(rp_vsock_connections(m.v) == 0);
    turn();
    for (unsigned i = 0; i < m.n; i++) {
        char byte;
        if (m.c[i].fd < 0)
            continue;
        host_reads(&m.c[i]);
        FZ_HOLDS(recv(m.c[i].fd, &byte, 1, MSG_DONTWAIT) == 0 || errno != EAGAIN);  /* the host program knows that it is over */
        close(m.c[i].fd);
    }
    for (unsigned i = 0; i < CALLERS; i++)
        if (m.caller[i].fd >= 0)
            close(m.caller[i].fd);
    turn();
    rp_vsock_reset(m.v);
    pthread_mutex_unlock(&m.lock);
    return 0;
}
