/* virtio-vsock, driven through its queues without KVM, against real unix sockets. */
#include "tests/unit/guest_driver.h"

#include <errno.h>
#include <linux/virtio_vsock.h>
#include <poll.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>

enum { RX, TX, EVENTS };
#define SLOT 20
#define CID 5u
#define HEADER 44u
#define TX_AT 0x400000u
#define RX_AT 0x500000u
#define RX_BYTES 4096u
#define RX_BUFFERS 32u
#define EVENT_AT 0x600000u
#define WAIT_MS 5000
#define PORT 1234u

static struct board board;
static struct rp_device dev;
static struct drv drv;
static char path[64];

static void post_rx(unsigned i)
{
    struct seg s = {RX_AT + i * RX_BYTES, RX_BYTES, true};

    drv_post(&drv, RX, &s, 1);
}

static void up(void)
{
    pthread_mutex_lock(&board.lock);
    drv_up(&drv, &board, SLOT, 1ull << VIRTIO_RING_F_EVENT_IDX);
    dev.ops->start(dev.dev);
    pthread_mutex_unlock(&board.lock);
    for (unsigned i = 0; i < RX_BUFFERS; i++)
        post_rx(i);
    drv_kick(&drv, RX);
}

static void make(void)
{
    struct rp_error err = {0};

    cr_assert_eq(rp_virtio_vsock_create(&board.env, SLOT, path, CID, &dev, &err), 0, "%s", err.text);
}

static void setup(void)
{
    struct rp_error err = {0};

    snprintf(path, sizeof(path), "/tmp/vsock-test-%d", (int)getpid());
    board_make(&board, 16u << 20);
    cr_assert_eq(rp_gate_create(board.loop, 1u << 20, &board.env.gate, &err), 0);
    make();
    cr_assert_eq(rp_loop_start(board.loop, &err), 0);
    up();
}

static void teardown(void)
{
    board_free_with(&board, &dev);
}

TestSuite(vsock, .init = setup, .fini = teardown, .timeout = 60);

/* --- the guest --- */

struct packet { uint64_t src, dst; uint32_t sport, dport, len, flags, alloc, fwd; uint16_t type, op; const uint8_t *data; };

static uint32_t taken;         /* bytes of the host's that the guest's program has read */

static void post(uint16_t op, uint32_t sport, uint32_t dport, uint32_t flags, const void *data, uint32_t len)
{
    uint8_t *p = drv_at(&drv, TX_AT);
    struct seg s[2] = {{TX_AT, HEADER, false}, {TX_AT + HEADER, len, false}};
    uint32_t head, done;

    rp_st64(p, CID);
    rp_st64(p + 8, 2);
    rp_st32(p + 16, sport);
    rp_st32(p + 20, dport);
    rp_st32(p + 24, len);
    rp_st16(p + 28, VIRTIO_VSOCK_TYPE_STREAM);
    rp_st16(p + 30, op);
    rp_st32(p + 32, flags);
    rp_st32(p + 36, 64u << 10);
    rp_st32(p + 40, taken);
    if (len)
        memcpy(p + HEADER, data, len);
    drv_post(&drv, TX, s, len ? 2 : 1);
    drv_kick(&drv, TX);
    cr_assert(drv_done(&drv, TX, WAIT_MS, &head, &done));
}

static bool next(struct packet *k, int ms)
{
    uint32_t head, len;

    if (!drv_done(&drv, RX, ms, &head, &len))
        return false;
    const uint8_t *p = drv_at(&drv, RX_AT + head % RX_BUFFERS * RX_BYTES);      /* posted in order, one descriptor each */
    *k = (struct packet){rp_ld64(p), rp_ld64(p + 8), rp_ld32(p + 16), rp_ld32(p + 20), rp_ld32(p + 24), rp_ld32(p + 32), rp_ld32(p + 36),
                         rp_ld32(p + 40), rp_ld16(p + 28), rp_ld16(p + 30), p + HEADER};
    cr_assert_eq(len, HEADER + k->len);
    cr_assert_eq(k->src, 2u);
    cr_assert_eq(k->dst, CID);
    return true;
}

static void expect(uint16_t op, struct packet *k)
{
    do
        cr_assert(next(k, WAIT_MS), "no packet, expected operation %u", op);
    while (k->op == VIRTIO_VSOCK_OP_CREDIT_UPDATE && op != VIRTIO_VSOCK_OP_CREDIT_UPDATE);
    cr_assert_eq(k->op, op, "operation %u instead of %u", k->op, op);
}

/* --- the host --- */

static int host_socket(bool listens, const char *at)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);

    snprintf(a.sun_path, sizeof(a.sun_path), "%s", at);
    if (listens) {
        unlink(at);
        cr_assert_eq(bind(fd, (struct sockaddr *)&a, sizeof(a)), 0);
        cr_assert_eq(listen(fd, 4), 0);
    } else {
        cr_assert_eq(connect(fd, (struct sockaddr *)&a, sizeof(a)), 0, "%s: %s", at, strerror(errno));
    }
    return fd;
}

static void read_all(int fd, void *buf, size_t n)
{
    for (size_t done = 0; done < n;) {
        struct pollfd p = {.fd = fd, .events = POLLIN};

        cr_assert_eq(poll(&p, 1, WAIT_MS), 1, "%zu of %zu bytes came", done, n);
        ssize_t k = read(fd, (char *)buf + done, n - done);
        cr_assert_gt(k, 0, "the socket ended after %zu of %zu bytes", done, n);
        done += (size_t)k;
    }
}

static bool ends(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    char c;

    return poll(&p, 1, WAIT_MS) == 1 && read(fd, &c, 1) <= 0;
}

/* A connection that the guest began; *listener stays open. */
static int guest_connects(int *listener)
{
    char at[80];
    struct packet k;

    snprintf(at, sizeof(at), "%s_%u", path, PORT);
    *listener = host_socket(true, at);
    post(VIRTIO_VSOCK_OP_REQUEST, 77, PORT, 0, NULL, 0);
    int fd = accept(*listener, NULL, NULL);
    expect(VIRTIO_VSOCK_OP_RESPONSE, &k);
    cr_assert_eq(k.sport, PORT);
    cr_assert_eq(k.dport, 77u);
    unlink(at);
    return fd;
}

Test(vsock, the_guest_reaches_a_listening_socket_and_bytes_go_both_ways)
{
    struct packet k;
    char buf[16] = "";
    int listener, fd = guest_connects(&listener);

    post(VIRTIO_VSOCK_OP_RW, 77, PORT, 0, "hello", 5);
    read_all(fd, buf, 5);
    cr_assert_str_eq(buf, "hello");
    cr_assert_eq(write(fd, "answer", 6), 6);
    expect(VIRTIO_VSOCK_OP_RW, &k);
    cr_assert_eq(k.len, 6u);
    cr_assert_eq(memcmp(k.data, "answer", 6), 0);
    cr_assert_eq(k.fwd, 5u, "what was delivered");
    close(fd);
    expect(VIRTIO_VSOCK_OP_SHUTDOWN, &k);
    post(VIRTIO_VSOCK_OP_SHUTDOWN, 77, PORT, VIRTIO_VSOCK_SHUTDOWN_RCV | VIRTIO_VSOCK_SHUTDOWN_SEND, NULL, 0);
    expect(VIRTIO_VSOCK_OP_RST, &k);
    close(listener);
}

Test(vsock, the_host_reaches_a_port_of_the_guest_with_a_greeting)
{
    struct packet k;
    char line[32] = "";
    int fd = host_socket(false, path);

    cr_assert_eq(write(fd, "CONNECT 99\nfirst", 16), 16);
    expect(VIRTIO_VSOCK_OP_REQUEST, &k);
    cr_assert_eq(k.dport, 99u);
    uint32_t port = k.sport;
    cr_assert_not(next(&k, 50), "nothing more before the guest has answered");
    post(VIRTIO_VSOCK_OP_RESPONSE, 99, port, 0, NULL, 0);
    expect(VIRTIO_VSOCK_OP_RW, &k);
    cr_assert_eq(k.len, 5u, "what came behind the greeting");
    read_all(fd, line, 3);
    cr_assert_str_eq(line, "OK ");
    post(VIRTIO_VSOCK_OP_RST, 99, port, 0, NULL, 0);
    char rest[16];
    read_all(fd, rest, (size_t)snprintf(NULL, 0, "%u\n", port));
    cr_assert(ends(fd));
    close(fd);
}

Test(vsock, nonsense_instead_of_a_greeting_ends_that_connection_only)
{
    struct packet k;
    const char *const lines[] = {"CONNECT\n", "CONNECT 4294967296\n", "CONNECT -1\n", "HELLO 12\n", "CONNECT 1 2\n",
                                 "CONNECT 11111111111111111111111111111111111111111111\n"};

    for (unsigned i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
        int fd = host_socket(false, path);

        cr_assert_eq(write(fd, lines[i], strlen(lines[i])), (ssize_t)strlen(lines[i]));
        cr_assert(ends(fd), "%s", lines[i]);
        close(fd);
    }
    cr_assert_not(next(&k, 50), "the guest heard of it");
}

Test(vsock, a_port_that_nobody_listens_at_is_refused)
{
    struct packet k;

    post(VIRTIO_VSOCK_OP_REQUEST, 77, 4321, 0, NULL, 0);
    expect(VIRTIO_VSOCK_OP_RST, &k);
    cr_assert_eq(k.sport, 4321u);
    cr_assert_eq(k.dport, 77u);
    post(VIRTIO_VSOCK_OP_RW, 78, 4321, 0, "x", 1);
    expect(VIRTIO_VSOCK_OP_RST, &k);
    cr_assert_eq(k.dport, 78u);
}

Test(vsock, what_the_guest_sends_waits_for_its_epoch_INV_1)
{
    struct packet k;
    char at[80], buf[8] = "";
    struct pollfd p = {.events = POLLIN};

    snprintf(at, sizeof(at), "%s_%u", path, PORT);
    p.fd = host_socket(true, at);
    rp_gate_hold(board.env.gate, true);
    rp_gate_cut(board.env.gate, 1);
    post(VIRTIO_VSOCK_OP_REQUEST, 77, PORT, 0, NULL, 0);
    cr_assert_eq(poll(&p, 1, 100), 0, "a connection is an output too");
    rp_gate_cut(board.env.gate, 2);
    rp_gate_release(board.env.gate, 1);
    cr_assert_eq(poll(&p, 1, 100), 0);
    rp_gate_release(board.env.gate, 2);
    int fd = accept(p.fd, NULL, NULL);
    expect(VIRTIO_VSOCK_OP_RESPONSE, &k);
    post(VIRTIO_VSOCK_OP_RW, 77, PORT, 0, "late", 4);
    struct pollfd q = {.fd = fd, .events = POLLIN};
    cr_assert_eq(poll(&q, 1, 100), 0);
    rp_gate_cut(board.env.gate, 3);
    rp_gate_release(board.env.gate, 3);
    read_all(fd, buf, 4);
    cr_assert_str_eq(buf, "late");
    close(fd);
    close(p.fd);
    unlink(at);
}

Test(vsock, a_guest_that_sends_beyond_its_credit_is_reset_VSOCK_1)
{
    struct packet k;
    static uint8_t block[32u << 10];
    int listener, fd = guest_connects(&listener), small = 1;

    cr_assert_eq(setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof(small)), 0);
    for (unsigned i = 0; i < 64; i++)       /* 2 MiB, nobody reads: the socket's buffers and the credit fill up */
        post(VIRTIO_VSOCK_OP_RW, 77, PORT, 0, block, sizeof(block));
    expect(VIRTIO_VSOCK_OP_RST, &k);
    close(fd);
    close(listener);
}

Test(vsock, the_host_sends_no_more_than_the_guest_has_room_for)
{
    struct packet k;
    static uint8_t block[256u << 10];
    uint32_t got = 0;
    int listener, fd = guest_connects(&listener);
    struct pollfd p = {.fd = fd, .events = POLLOUT};

    for (size_t sent = 0; sent < sizeof(block) && poll(&p, 1, 200) == 1;) {
        ssize_t n = send(fd, block + sent, sizeof(block) - sent, MSG_DONTWAIT);
        cr_assert_gt(n, 0);
        sent += (size_t)n;
    }
    while (next(&k, 300)) {
        cr_assert_eq(k.op, VIRTIO_VSOCK_OP_RW);
        got += k.len;
    }
    cr_assert_eq(got, 64u << 10, "the guest said 64 KiB and took nothing yet");
    close(fd);
    close(listener);
}

/* A guest that answers has said in its answer what it has read, and need not say it once more. */
Test(vsock, room_that_the_guest_tells_of_in_passing_is_used)
{
    struct packet k;
    static uint8_t block[80u << 10];
    char buf[4];
    uint32_t got = 0;
    int listener, fd = guest_connects(&listener);

    cr_assert_eq(send(fd, block, sizeof(block), MSG_DONTWAIT), (ssize_t)sizeof(block));
    while (got < 64u << 10) {
        expect(VIRTIO_VSOCK_OP_RW, &k);
        got += k.len;
    }
    cr_assert_not(next(&k, 50), "no room");
    taken = got;
    post(VIRTIO_VSOCK_OP_RW, 77, PORT, 0, "more", 4);
    read_all(fd, buf, 4);
    while (got < sizeof(block)) {
        expect(VIRTIO_VSOCK_OP_RW, &k);
        got += k.len;
    }
    close(fd);
    close(listener);
}

Test(vsock, after_entering_an_epoch_the_guest_hears_that_its_connections_are_gone_VSOCK_2)
{
    struct rp_sections sections = {0};
    struct rp_section sec;
    struct rp_error err = {0};
    struct seg s = {EVENT_AT, 4, true};
    uint32_t head, len, cid = 0;
    int listener, fd = guest_connects(&listener);

    memset(drv_at(&drv, EVENT_AT), 0xff, 4);
    drv_post(&drv, EVENTS, &s, 1);
    drv_kick(&drv, EVENTS);
    cr_assert_not(drv_done(&drv, EVENTS, 50, &head, &len), "nothing has happened");
    pthread_mutex_lock(&board.lock);
    dev.ops->stop(dev.dev);
    cr_assert_eq(dev.ops->save(dev.dev, &sections, SLOT, &err), 0);
    cr_assert(rp_sections_find(&sections, dev.section, SLOT, &sec));
    cr_assert_eq(rp_virtio_vsock_cid(&sec, &cid, &err), 0);
    cr_assert_eq(cid, CID);
    dev.ops->destroy(dev.dev);
    make();
    cr_assert_eq(dev.ops->load(dev.dev, &sec, &err), 0, "%s", err.text);
    dev.ops->start(dev.dev);
    pthread_mutex_unlock(&board.lock);
    cr_assert(ends(fd), "the host's end is closed");
    cr_assert(drv_done(&drv, EVENTS, WAIT_MS, &head, &len));
    cr_assert_eq(len, 4u);
    cr_assert_eq(rp_ld32(drv_at(&drv, EVENT_AT)), (uint32_t)VIRTIO_VSOCK_EVENT_TRANSPORT_RESET);
    rp_sections_fini(&sections);
    close(fd);
    close(guest_connects(&listener));       /* and it works here */
}

Test(vsock, hostile_packets_break_only_the_device)
{
    struct seg runt = {TX_AT, HEADER - 1, false};
    uint8_t *p = drv_at(&drv, TX_AT);

    drv_post(&drv, TX, &runt, 1);
    drv_kick(&drv, TX);
    cr_assert(drv_broken(&drv, WAIT_MS));
    up();
    memset(p, 0, HEADER);
    rp_st32(p + 24, 1u << 30);              /* more than is there */
    struct seg s = {TX_AT, HEADER + 100, false};
    drv_post(&drv, TX, &s, 1);
    drv_kick(&drv, TX);
    cr_assert(drv_broken(&drv, WAIT_MS));
}

Test(vsock, packets_of_other_addresses_are_ignored)
{
    struct packet k;
    uint32_t head, done;
    uint8_t *p = drv_at(&drv, TX_AT);
    struct seg s = {TX_AT, HEADER, false};

    memset(p, 0, HEADER);
    rp_st64(p, CID + 1);
    rp_st64(p + 8, 2);
    rp_st16(p + 28, VIRTIO_VSOCK_TYPE_STREAM);
    rp_st16(p + 30, VIRTIO_VSOCK_OP_REQUEST);
    drv_post(&drv, TX, &s, 1);
    drv_kick(&drv, TX);
    cr_assert(drv_done(&drv, TX, WAIT_MS, &head, &done));
    cr_assert_not(next(&k, 50));
}

Test(vsock_path, one_that_is_in_use_is_refused)
{
    struct rp_error err = {0};
    struct rp_device second;

    setup();
    cr_assert_lt(rp_virtio_vsock_create(&board.env, SLOT + 1, path, CID + 1, &second, &err), 0);
    cr_assert_eq(err.exit, RP_EXIT_REFUSED);
    cr_assert(strstr(err.text, path), "%s", err.text);
    cr_assert_eq(access(path, F_OK), 0, "and stays the other's");
    teardown();
}

Test(vsock_table, tiles)
{
    struct rp_error err = {0};

    cr_assert_eq(rp_state_check(&rp_virtio_vsock_table, &err), 0, "%s", err.text);
}
