/* virtio-net over a unix stream, a datagram socket and a real tap, driven through its queues without KVM. */
#include "tests/unit/guest_driver.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <linux/rtnetlink.h>
#include <linux/virtio_net.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#define SLOT 2
#define RX 0
#define TX 1
#define CONTROL 2
#define HDR 12u
#define TX_BUF 0x80000u
#define RX_BUF 0x400000u
#define WAIT_MS 5000

static struct board board;
static struct rp_device nic;
static struct drv drv;
static int peer;            /* the other end of the wire */
static const uint8_t mac[6] = {0x52, 0x54, 0, 1, 2, 3};

static void lock(void) { pthread_mutex_lock(&board.lock); }
static void unlock(void) { pthread_mutex_unlock(&board.lock); }

static void up(const struct rp_nic_config *cfg, uint64_t features)
{
    struct rp_error err = {0};

    board_make(&board, 32u << 20);
    cr_assert_eq(rp_gate_create(board.loop, 1u << 20, &board.env.gate, &err), 0, "%s", err.text);
    cr_assert_eq(rp_virtio_net_create(&board.env, SLOT, cfg, mac, &nic, &err), 0, "%s", err.text);
    cr_assert_eq(rp_loop_start(board.loop, &err), 0);
    lock();
    drv_up(&drv, &board, SLOT, features | 1ull << VIRTIO_RING_F_EVENT_IDX);
    nic.ops->start(nic.dev);
    unlock();
}

static void down(void)
{
    board_free_with(&board, &nic);
    if (peer >= 0)
        close(peer);
}

static void up_socket(int type, uint64_t features)
{
    int sv[2];
    struct rp_nic_config cfg = {.kind = RP_NIC_FD};

    cr_assert_eq(socketpair(AF_UNIX, type, 0, sv), 0);
    cfg.fd = sv[0];
    peer = sv[1];
    up(&cfg, features);
}

static void stream_setup(void) { up_socket(SOCK_STREAM, 1ull << VIRTIO_NET_F_MRG_RXBUF | 1ull << VIRTIO_NET_F_CTRL_VQ | 1ull << VIRTIO_NET_F_GUEST_ANNOUNCE | 1ull << VIRTIO_NET_F_CTRL_MAC_ADDR); }
static void dgram_setup(void) { up_socket(SOCK_DGRAM, 0); }
static void seqpacket_setup(void) { up_socket(SOCK_SEQPACKET, 0); }

static uint8_t pattern(unsigned frame, unsigned i) { return (uint8_t)(frame * 31 + i * 7 + i / 251); }

static void send_frame(unsigned frame, uint32_t len, bool kick)
{
    uint64_t at = TX_BUF + (frame % 64) * 0x10000u;
    uint8_t *p;
    struct seg s[2] = {{at, HDR, false}, {at + HDR, len, false}};

    cr_assert(rp_ram_at(&board.ram, rp_gpa(at), HDR + len) != NULL);
    p = drv_at(&drv, at);
    memset(p, 0, HDR);
    for (unsigned i = 0; i < len; i++)
        p[HDR + i] = pattern(frame, i);
    drv_post(&drv, TX, s, 2);
    if (kick)
        drv_kick(&drv, TX);
}

static void read_all(int fd, void *out, size_t n)
{
    for (size_t done = 0; done < n; ) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        ssize_t k;

        cr_assert_eq(poll(&p, 1, WAIT_MS), 1, "nothing came out of the guest");
        k = read(fd, (uint8_t *)out + done, n - done);
        cr_assert_gt(k, 0);
        done += (size_t)k;
    }
}

static uint32_t read_frame(uint8_t *out)
{
    uint8_t be[4];
    uint32_t len;

    read_all(peer, be, 4);
    len = (uint32_t)be[0] << 24 | (uint32_t)be[1] << 16 | (uint32_t)be[2] << 8 | be[3];
    cr_assert_leq(len, 70000u);
    read_all(peer, out, len);
    return len;
}

static void write_frame(unsigned frame, uint32_t len)
{
    static uint8_t f[70000];

    f[0] = (uint8_t)(len >> 24);
    f[1] = (uint8_t)(len >> 16);
    f[2] = (uint8_t)(len >> 8);
    f[3] = (uint8_t)len;
    for (unsigned i = 0; i < len; i++)
        f[4 + i] = pattern(frame, i);
    cr_assert_eq(write(peer, f, 4 + len), (ssize_t)(4 + len));
}

static void post_rx(unsigned count, uint32_t size)
{
    static unsigned next;

    for (unsigned i = 0; i < count; i++) {
        struct seg s = {RX_BUF + (next++ % 200) * 0x10000u, size, true};

        drv_post(&drv, RX, &s, 1);
    }
    drv_kick(&drv, RX);
}

/* The next received frame, put together from its buffers; which descriptor a head is tells its address. */
static uint32_t take_rx(uint8_t *out, unsigned *buffers)
{
    uint32_t total = 0, head, len;
    unsigned n = 1;

    for (unsigned i = 0; i < n; i++) {
        const uint8_t *d, *b;

        cr_assert(drv_done(&drv, RX, WAIT_MS, &head, &len), "no frame came in");
        d = (const uint8_t *)drv_at(&drv, drv.q[RX].desc) + 16 * head;
        b = drv_at(&drv, rp_ld64(d));
        if (i == 0) {
            n = rp_ld16(b + 10);
            cr_assert_geq(n, 1u);
            memcpy(out, b + HDR, len - HDR);
            total = len - HDR;
        } else {
            memcpy(out + total, b, len);
            total += len;
        }
    }
    *buffers = n;
    return total;
}

static void expect(const uint8_t *got, unsigned frame, uint32_t len)
{
    for (unsigned i = 0; i < len; i++)
        cr_assert_eq(got[i], pattern(frame, i), "frame %u byte %u of %u", frame, i, len);
}

TestSuite(stream, .init = stream_setup, .fini = down, .timeout = 60);
TestSuite(dgram, .init = dgram_setup, .fini = down, .timeout = 60);
TestSuite(seqpacket, .init = seqpacket_setup, .fini = down, .timeout = 60);

static uint8_t buf[80000];

Test(stream, frames_leave_in_order_with_their_length)
{
    for (unsigned i = 0; i < 50; i++)
        send_frame(i, 60 + i * 29, i == 49);
    for (unsigned i = 0; i < 50; i++) {
        cr_assert_eq(read_frame(buf), 60 + i * 29);
        expect(buf, i, 60 + i * 29);
    }
    for (unsigned i = 0; i < 50; i++) {
        uint32_t head, len;

        cr_assert(drv_done(&drv, TX, WAIT_MS, &head, &len));
    }
}

Test(stream, frames_come_in_and_large_ones_are_spread)
{
    unsigned n;

    post_rx(60, 1536);
    write_frame(1, 60);
    cr_assert_eq(take_rx(buf, &n), 60u);
    cr_assert_eq(n, 1u);
    expect(buf, 1, 60);
    write_frame(2, 65000);
    cr_assert_eq(take_rx(buf, &n), 65000u);
    cr_assert_eq(n, 43u);
    expect(buf, 2, 65000);
    write_frame(3, 1524);
    cr_assert_eq(take_rx(buf, &n), 1524u);
    cr_assert_eq(n, 1u);
    expect(buf, 3, 1524);
    cr_assert(drv_pending(&drv, RX + 1));
}

Test(stream, a_frame_waits_for_buffers_and_is_not_lost)
{
    unsigned n;

    post_rx(10, 1536);
    write_frame(7, 30000);              /* needs 20 buffers */
    write_frame(8, 100);
    usleep(30000);
    cr_assert_eq(drv_used_idx(&drv, RX), 0);
    post_rx(5, 1536);
    usleep(10000);
    post_rx(20, 1536);
    cr_assert_eq(take_rx(buf, &n), 30000u);
    expect(buf, 7, 30000);
    cr_assert_eq(take_rx(buf, &n), 100u);
    expect(buf, 8, 100);
}

/* All buffers that a queue can hold are too few for it: it is dropped, and the next one comes. */
Test(stream, a_frame_that_can_never_be_spread_is_dropped)
{
    unsigned n;

    post_rx(256, 16);
    write_frame(1, 5000);
    write_frame(2, 100);
    cr_assert_eq(take_rx(buf, &n), 100u);
    cr_assert_eq(n, 7u);
    expect(buf, 2, 100);
}

/* A driver may cut a buffer as finely as it likes: the header too. */
Test(stream, a_buffer_of_single_bytes)
{
    struct seg s[64];
    unsigned n;

    for (unsigned i = 0; i < 63; i++)
        s[i] = (struct seg){RX_BUF + i, 1, true};
    s[63] = (struct seg){RX_BUF + 63, 2000, true};
    drv_post(&drv, RX, s, 64);
    drv_kick(&drv, RX);
    write_frame(3, 400);
    cr_assert_eq(take_rx(buf, &n), 400u);
    cr_assert_eq(n, 1u);
    expect(buf, 3, 400);
}

Test(stream, receive_marks_ram_dirty)
{
    unsigned n;

    post_rx(4, 1536);
    rp_ram_track(&board.ram, true);
    write_frame(1, 200);
    take_rx(buf, &n);
    cr_assert_geq(rp_pageset_count(&board.ram.device_dirty), 2u);
}

Test(stream, a_held_gate_keeps_frames_until_release)
{
    struct pollfd p = {.fd = peer, .events = POLLIN};

    rp_gate_hold(board.env.gate, true);
    lock();
    rp_gate_cut(board.env.gate, 1);
    unlock();
    send_frame(1, 100, true);
    send_frame(2, 100, true);
    usleep(20000);
    cr_assert_eq(poll(&p, 1, 20), 0, "INV-1");
    lock();
    rp_gate_cut(board.env.gate, 2);
    unlock();
    send_frame(3, 100, true);
    usleep(20000);
    rp_gate_release(board.env.gate, 2);
    cr_assert_eq(read_frame(buf), 100u);
    expect(buf, 1, 100);
    cr_assert_eq(read_frame(buf), 100u);
    cr_assert_eq(poll(&p, 1, 20), 0, "INV-1: frame 3 is of epoch 3");
    rp_gate_hold(board.env.gate, false);
    cr_assert_eq(read_frame(buf), 100u);
    expect(buf, 3, 100);
}

/* GATE-4 end to end: the peer does not read, the gate is bounded, and in the end every frame arrives, in order. */
Test(stream, a_slow_peer_pushes_back_to_the_guest)
{
    enum { N = 120, LEN = 30000 };      /* 3.6 MB: more than socket, stream buffer and gate hold */

    for (unsigned i = 0; i < N; i++)
        send_frame(i % 2, LEN, true);
    usleep(50000);
    cr_assert_lt(drv_used_idx(&drv, TX), N, "nothing pushes back");
    for (unsigned i = 0; i < N; i++) {
        cr_assert_eq(read_frame(buf), (uint32_t)LEN);
        expect(buf, i % 2, LEN);
    }
}

Test(stream, control_queue)
{
    uint8_t *c = drv_at(&drv, 0x90000);
    struct seg s[2] = {{0x90000, 8, false}, {0x90100, 1, true}};
    uint32_t head, len;

    memcpy(c, (uint8_t[]){VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, 2, 4, 6, 8, 10, 12}, 8);
    c[0x100] = 0xee;
    drv_post(&drv, CONTROL, s, 2);
    drv_kick(&drv, CONTROL);
    cr_assert(drv_done(&drv, CONTROL, WAIT_MS, &head, &len));
    cr_assert_eq(c[0x100], VIRTIO_NET_OK);
    cr_assert_eq(mmio_get(&board, drv.device, 4), 0x08060402u);
    c[0] = 99;
    drv_post(&drv, CONTROL, s, 2);
    drv_kick(&drv, CONTROL);
    cr_assert(drv_done(&drv, CONTROL, WAIT_MS, &head, &len));
    cr_assert_eq(c[0x100], VIRTIO_NET_ERR);
}

Test(stream, announcing_sends_rarp_and_asks_the_guest)
{
    lock();
    nic.ops->announce(nic.dev);
    unlock();
    cr_assert_eq(read_frame(buf), 60u);
    cr_assert_arr_eq(buf + 6, mac, 6);
    cr_assert_eq(buf[12] << 8 | buf[13], 0x8035);
    lock();
    cr_assert(mmio_get(&board, drv.device + 6, 2) & VIRTIO_NET_S_ANNOUNCE);
    unlock();
    cr_assert(drv_pending(&drv, 0), "configuration interrupt");
}

Test(stream, hostile_frames_break_only_the_device)
{
    struct seg s = {TX_BUF, 5, false};

    drv_post(&drv, TX, &s, 1);
    drv_kick(&drv, TX);
    cr_assert(drv_broken(&drv, WAIT_MS));
}

Test(stream, rx_buffer_without_room_for_a_header)
{
    struct seg s = {RX_BUF, 4, true};

    drv_post(&drv, RX, &s, 1);
    drv_kick(&drv, RX);
    write_frame(1, 60);
    cr_assert(drv_broken(&drv, WAIT_MS));
}

Test(stream, a_length_that_makes_no_sense_ends_the_connection)
{
    uint8_t bad[8] = {0xff, 0xff, 0xff, 0xff};
    struct pollfd p = {.fd = peer, .events = POLLIN};

    post_rx(4, 1536);
    cr_assert_eq(write(peer, bad, 8), 8);
    cr_assert_eq(poll(&p, 1, WAIT_MS), 1);
    cr_assert_leq(read(peer, bad, 1), 0, "closed");
    send_frame(1, 100, true);           /* the guest goes on: lost like on an unplugged wire */
    uint32_t head, len;
    cr_assert(drv_done(&drv, TX, WAIT_MS, &head, &len));
}

Test(stream, state_travels_and_frames_flow_after_it)
{
    struct rp_sections sec = {0};
    struct rp_section one;
    struct rp_error err = {0};
    size_t pos = 0;
    unsigned n;
    int sv[2];
    struct rp_nic_config cfg = {.kind = RP_NIC_FD};

    post_rx(8, 1536);
    lock();
    nic.ops->stop(nic.dev);
    cr_assert_eq(nic.ops->save(nic.dev, &sec, SLOT, &err), 0);
    cr_assert(rp_sections_next(&sec, &pos, &one));
    nic.ops->destroy(nic.dev);
    close(peer);
    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, sv), 0);
    cfg.fd = sv[0];
    peer = sv[1];
    cr_assert_eq(rp_virtio_net_create(&board.env, SLOT, &cfg, mac, &nic, &err), 0, "%s", err.text);
    cr_assert_eq(nic.ops->load(nic.dev, &one, &err), 0, "%s", err.text);
    nic.ops->start(nic.dev);
    unlock();
    write_frame(5, 300);
    cr_assert_eq(take_rx(buf, &n), 300u);
    expect(buf, 5, 300);
    send_frame(6, 200, true);
    cr_assert_eq(read_frame(buf), 200u);
    expect(buf, 6, 200);
    rp_sections_fini(&sec);
}

Test(stream, state_table_tiles)
{
    struct rp_error err = {0};

    cr_assert_eq(rp_state_check(&rp_virtio_net_table, &err), 0, "%s", err.text);
}

Test(dgram, both_ways)
{
    unsigned n;

    send_frame(4, 900, true);
    struct pollfd p = {.fd = peer, .events = POLLIN};
    cr_assert_eq(poll(&p, 1, WAIT_MS), 1);
    cr_assert_eq(read(peer, buf, sizeof(buf)), 900);
    expect(buf, 4, 900);
    post_rx(4, 2048);
    for (unsigned i = 0; i < 300; i++)
        buf[i] = pattern(9, i);
    cr_assert_eq(write(peer, buf, 300), 300);
    memset(buf, 0, 300);
    cr_assert_eq(take_rx(buf, &n), 300u);
    expect(buf, 9, 300);
}

/* INV-5: the peer stops reading until everything is full, and then it dies: what waits is lost like on an unplugged wire. */
Test(seqpacket, a_peer_that_dies_while_the_guest_waits_for_it)
{
    uint32_t head, len;
    unsigned sent = 0, done = 0;

    do {
        for (unsigned i = 0; i < 16; i++)
            send_frame(sent++ % 2, 20000, true);
        while (drv_done(&drv, TX, 100, &head, &len))
            done++;
        cr_assert_lt(sent, 240u, "nothing pushes back");
    } while (done == sent);
    close(peer);
    peer = -1;
    for (; done < sent; done++)
        cr_assert(drv_done(&drv, TX, WAIT_MS, &head, &len), "%u of %u frames wait for a peer that is gone", sent - done, sent);
    send_frame(0, 100, true);
    cr_assert(drv_done(&drv, TX, WAIT_MS, &head, &len));
}

Test(connection, a_path_is_connected_to_again, .timeout = 60)
{
    char path[64] = "/tmp/reprise-net-XXXXXX";
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    struct rp_nic_config cfg = {.kind = RP_NIC_UNIX, .name = a.sun_path};
    struct rp_device none;
    struct rp_error err = {0};
    int l;

    cr_assert(mkdtemp(path));
    snprintf(a.sun_path, sizeof(a.sun_path), "%s/s", path);
    board_make(&board, 1u << 20);
    cr_assert_eq(rp_gate_create(board.loop, 1u << 20, &board.env.gate, &err), 0);
    cr_assert_eq(rp_virtio_net_create(&board.env, SLOT, &cfg, mac, &none, &err), -ENOENT);
    cr_assert(strstr(err.text, "start passt"), "%s", err.text);
    board_free(&board);

    l = socket(AF_UNIX, SOCK_STREAM, 0);
    cr_assert_eq(bind(l, (struct sockaddr *)&a, sizeof(a)), 0);
    cr_assert_eq(listen(l, 4), 0);
    up(&cfg, 0);
    peer = accept(l, NULL, NULL);
    send_frame(1, 100, true);
    cr_assert_eq(read_frame(buf), 100u);
    close(peer);
    peer = accept(l, NULL, NULL);           /* it comes back by itself */
    cr_assert_geq(peer, 0);
    for (int i = 0; ; i++) {
        struct pollfd p = {.fd = peer, .events = POLLIN};

        cr_assert_lt(i, 100);
        send_frame(2, 100, true);
        if (poll(&p, 1, 50) == 1)
            break;
    }
    cr_assert_eq(read_frame(buf), 100u);
    expect(buf, 2, 100);
    down();
    close(l);
    unlink(a.sun_path);
    rmdir(path);
}

static void make_tap(const char *name)
{
    struct ifreq ifr = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
    int fd = open("/dev/net/tun", O_RDWR);

    snprintf(ifr.ifr_name, sizeof(ifr.ifr_name), "%s", name);
    cr_assert(fd >= 0 && ioctl(fd, TUNSETIFF, &ifr) == 0 && ioctl(fd, TUNSETPERSIST, 1) == 0, "%s", strerror(errno));
    close(fd);
}

static void no_such_tap(const struct rp_nic_config *cfg)
{
    struct rp_error err = {0};

    board_make(&board, 1u << 20);
    cr_assert_eq(rp_gate_create(board.loop, 256u << 10, &board.env.gate, &err), 0);
    cr_assert_eq(rp_virtio_net_create(&board.env, SLOT, cfg, mac, &nic, &err), -ENODEV);
    cr_assert_eq(err.exit, RP_EXIT_HOST);
    cr_assert(strstr(err.text, "no such interface"), "%s", err.text);
    board_free(&board);
}

/* As `ip link del` does. */
static void delete_interface(const char *name)
{
    struct { struct nlmsghdr h; struct ifinfomsg i; } m = {
        .h = {.nlmsg_len = sizeof(m), .nlmsg_type = RTM_DELLINK, .nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK},
        .i = {.ifi_index = (int)if_nametoindex(name)}};
    struct { struct nlmsghdr h; struct nlmsgerr e; } answer;
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);

    cr_assert_eq(send(fd, &m, sizeof(m), 0), (ssize_t)sizeof(m));
    cr_assert_geq(recv(fd, &answer, sizeof(answer), 0), (ssize_t)sizeof(answer.h) + (ssize_t)sizeof(int));
    cr_assert_eq(answer.e.error, 0, "%s", strerror(-answer.e.error));
    close(fd);
}

/* INV-5: somebody deletes the interface under a running VM: frames are lost, and the io thread has its rest. */
Test(tap, an_interface_that_is_deleted, .timeout = 60)
{
    struct rp_nic_config cfg = {.kind = RP_NIC_TAP, .name = "rptap1"};
    uint32_t head, len;
    unsigned turns = 0;

    if (unshare(CLONE_NEWNET))
        cr_skip_test("no network namespace: %s", strerror(errno));
    if (access("/dev/net/tun", R_OK | W_OK))
        cr_skip_test("/dev/net/tun: %s", strerror(errno));
    peer = -1;
    make_tap(cfg.name);
    up(&cfg, 1ull << VIRTIO_NET_F_MRG_RXBUF);
    post_rx(4, 1536);
    delete_interface(cfg.name);
    send_frame(1, 100, true);
    cr_assert(drv_done(&drv, TX, WAIT_MS, &head, &len), "lost like on a wire");
    rp_loop_stop(board.loop);
    while (turns < 100 && rp_loop_turn(board.loop))
        turns++;
    cr_assert_lt(turns, 5u, "the loop is told again and again");
    down();
}

/* A real tap in a network namespace of the test's own; the other side is a packet socket on it. */
Test(tap, frames_with_headers_both_ways, .timeout = 60)
{
    struct rp_nic_config cfg = {.kind = RP_NIC_TAP, .name = "rptap0"};
    struct ifreq ifr = {0};
    struct sockaddr_ll ll = {.sll_family = AF_PACKET, .sll_protocol = 0x0300 /* ETH_P_ALL, network order */};
    int s;
    unsigned n;

    if (unshare(CLONE_NEWNET))
        cr_skip_test("no network namespace: %s", strerror(errno));
    if (access("/dev/net/tun", R_OK | W_OK))
        cr_skip_test("/dev/net/tun: %s", strerror(errno));
    peer = -1;
    no_such_tap(&cfg);
    make_tap(cfg.name);
    up(&cfg, 1ull << VIRTIO_NET_F_MRG_RXBUF | 1ull << VIRTIO_NET_F_CSUM | 1ull << VIRTIO_NET_F_GUEST_CSUM | 1ull << VIRTIO_NET_F_GUEST_TSO4);
    s = socket(AF_PACKET, SOCK_RAW, 0x0300);
    cr_assert_geq(s, 0);
    peer = s;
    snprintf(ifr.ifr_name, sizeof(ifr.ifr_name), "rptap0");
    ifr.ifr_flags = IFF_UP | IFF_RUNNING;
    cr_assert_eq(ioctl(s, SIOCSIFFLAGS, &ifr), 0);
    cr_assert_eq(ioctl(s, SIOCGIFINDEX, &ifr), 0);
    ll.sll_ifindex = ifr.ifr_ifindex;
    cr_assert_eq(bind(s, (struct sockaddr *)&ll, sizeof(ll)), 0);
    send_frame(3, 500, true);
    for (;;) {
        struct pollfd p = {.fd = s, .events = POLLIN};

        cr_assert_eq(poll(&p, 1, WAIT_MS), 1);
        if (read(s, buf, sizeof(buf)) == 500)       /* the kernel's own chatter is of other lengths */
            break;
    }
    expect(buf, 3, 500);
    post_rx(64, 1536);
    for (unsigned i = 0; i < 700; i++)
        buf[i] = pattern(8, i);
    cr_assert_eq(write(s, buf, 700), 700);
    do
        memset(buf, 0, 700);
    while (take_rx(buf, &n) != 700);
    expect(buf, 8, 700);
    struct rp_nic_info info;
    rp_virtio_net_info(&nic, &info);
    cr_assert_str_eq(info.kind, "tap");
    down();
}
