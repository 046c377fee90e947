/*
 * A network card with several queue pairs on a real tap, in a network namespace of the test's own; the other side is a packet
 * socket. What a queue sends leaves in its order, what comes in is spread, and the number of pairs in use is state.
 */
#include "tests/unit/guest_driver.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#define SLOT 2
#define PAIRS 4u
#define RX(pair) (2 * (pair))
#define TX(pair) (2 * (pair) + 1)
#define HDR 12u
#define TYPE 0x0800u        /* IPv4 and UDP: what the kernel tells flows by */
#define FLOW_AT 35          /* in a frame: the low byte of the source port */
#define NUMBER_AT 42        /* the first byte of the payload */
#define WAIT_MS 20000
#define MQ (1ull << VIRTIO_NET_F_MQ)
#define BASE (1ull << VIRTIO_NET_F_CTRL_VQ | 1ull << VIRTIO_NET_F_CTRL_MAC_ADDR | 1ull << VIRTIO_NET_F_MRG_RXBUF | 1ull << VIRTIO_RING_F_EVENT_IDX)
#define CONTROL_AT 0x700000u
#define TX_AT(pair, n) (0x800000u + (pair) * 0x80000u + (n) % 64 * 2048u)
#define RX_AT(pair, n) (0xc00000u + (pair) * 0x80000u + (n) % 128 * 2048u)

static struct board board;
static struct rp_device nic;
static struct drv drv;
static int wire = -1;
static const uint8_t mac[6] = {0x52, 0x54, 0, 1, 2, 3};
static const struct rp_nic_config config = {.kind = RP_NIC_TAP, .name = "rptapq", .queues = PAIRS};

static void lock(void) { pthread_mutex_lock(&board.lock); }
static void unlock(void) { pthread_mutex_unlock(&board.lock); }

static void make_tap(void)
{
    struct ifreq ifr = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_MULTI_QUEUE};
    struct sockaddr_ll ll = {.sll_family = AF_PACKET, .sll_protocol = (uint16_t)(TYPE >> 8 | TYPE << 8)};
    int fd;
    if (unshare(CLONE_NEWNET))
        cr_skip_test("no network namespace: %s", strerror(errno));
    fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
    if (fd < 0)
        cr_skip_test("/dev/net/tun: %s", strerror(errno));
    snprintf(ifr.ifr_name, sizeof(ifr.ifr_name), "%s", config.name);
    cr_assert(ioctl(fd, TUNSETIFF, &ifr) == 0 && ioctl(fd, TUNSETPERSIST, 1) == 0, "%s", strerror(errno));
    close(fd);
    wire = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
    cr_assert_geq(wire, 0);
    ifr.ifr_flags = IFF_UP | IFF_RUNNING;
    cr_assert_eq(ioctl(wire, SIOCSIFFLAGS, &ifr), 0);
    cr_assert_eq(ioctl(wire, SIOCGIFINDEX, &ifr), 0);
    ll.sll_ifindex = ifr.ifr_ifindex;
    cr_assert_eq(bind(wire, (struct sockaddr *)&ll, sizeof(ll)), 0);
}

static void make_card(const struct rp_nic_config *cfg)
{
    struct rp_error err = {0};
    cr_assert_eq(rp_virtio_net_create(&board.env, SLOT, cfg, mac, &nic, &err), 0, "%s", err.text);
}

static void up_on(const struct rp_nic_config *cfg, uint64_t features)
{
    struct rp_error err = {0};
    make_tap();
    board_make(&board, 32u << 20);
    cr_assert_eq(rp_gate_create(board.loop, 4u << 20, &board.env.gate, &err), 0, "%s", err.text);
    make_card(cfg);
    cr_assert_eq(rp_loop_start(board.loop, &err), 0);
    lock();
    drv_up(&drv, &board, SLOT, BASE | features);
    nic.ops->start(nic.dev);
    unlock();
}

static void up(void) { up_on(&config, MQ); }

static void down(void)
{
    if (!nic.dev)
        return;
    board_free_with(&board, &nic);
    close(wire);
}

TestSuite(net_queues, .init = up, .fini = down, .timeout = 120);
TestSuite(net_one_queue, .fini = down, .timeout = 120);

/* One control command in queue `n`; what the card says. */
static uint8_t command(unsigned n, uint8_t class, uint8_t cmd, const void *data, uint32_t len)
{
    uint8_t *c = drv_at(&drv, CONTROL_AT);
    struct seg s[2] = {{CONTROL_AT, 2 + len, false}, {CONTROL_AT + 64, 1, true}};
    uint32_t head, used;
    c[0] = class;
    c[1] = cmd;
    memcpy(c + 2, data, len);
    c[64] = 0xee;
    drv_post(&drv, n, s, 2);
    drv_kick(&drv, n);
    cr_assert(drv_done(&drv, n, WAIT_MS, &head, &used), "no answer in queue %u", n);
    return c[64];
}

static uint8_t set_pairs(unsigned n)
{
    uint8_t le[2];
    rp_st16(le, (uint16_t)n);
    return command(2 * PAIRS, VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, le, 2);
}

/* A datagram that says who it is: a flow and a number in it. Checksums are nobody's business here. */
static void frame(uint8_t out[64], uint8_t flow, uint8_t number)
{
    static const uint8_t ip[20] = {0x45, 0, 0, 50, 0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2};
    memset(out, 0, 64);
    memset(out, 0xff, 6);
    memcpy(out + 6, mac, 6);
    out[12] = TYPE >> 8;
    memcpy(out + 14, ip, sizeof(ip));
    out[34] = 0x80;
    out[FLOW_AT] = flow;
    out[37] = 9;            /* to port 9, 30 bytes */
    out[39] = 30;
    out[NUMBER_AT] = number;
}

static void send_frame(unsigned pair, uint8_t number)
{
    uint64_t at = TX_AT(pair, number);
    struct seg s = {at, HDR + 64, false};
    memset(drv_at(&drv, at), 0, HDR);
    frame((uint8_t *)drv_at(&drv, at) + HDR, (uint8_t)pair, number);
    drv_post(&drv, TX(pair), &s, 1);
    drv_kick(&drv, TX(pair));
}

/* The next frame on the wire within `ms`: its flow, and *number; -1: none. */
static int read_frame(int ms, uint8_t *number)
{
    struct pollfd p = {.fd = wire, .events = POLLIN};
    uint8_t got[2048];
    struct sockaddr_ll from;
    socklen_t len = sizeof(from);
    while (poll(&p, 1, ms) == 1) {
        ssize_t n = recvfrom(wire, got, sizeof(got), 0, (struct sockaddr *)&from, &len);
        if (n < 64 || from.sll_pkttype == PACKET_OUTGOING)
            continue;
        *number = got[NUMBER_AT];
        return got[FLOW_AT];
    }
    return -1;
}

/* `count` frames, numbered from 0 in each of `flows` flows, whichever way the flows are mixed. */
static void expect_in_order(unsigned flows, unsigned count)
{
    unsigned next[PAIRS] = {0};
    for (unsigned i = 0; i < count; i++) {
        uint8_t number;
        int flow = read_frame(WAIT_MS, &number);
        cr_assert(flow >= 0 && flow < (int)flows, "frame %u of %u did not come", i, count);
        cr_assert_eq(number, next[flow], "queue %d: %u instead of %u", flow, number, next[flow]);
        next[flow]++;
    }
}

Test(net_queues, as_many_pairs_as_were_asked_for)
{
    cr_assert_eq(drv.nqueues, 2 * PAIRS + 1);
    cr_assert_eq(mmio_get(&board, drv.device + 8, 2), PAIRS);
    cr_assert_eq(set_pairs(0), VIRTIO_NET_ERR);
    cr_assert_eq(set_pairs(PAIRS + 1), VIRTIO_NET_ERR);
    cr_assert_eq(set_pairs(PAIRS), VIRTIO_NET_OK);
    cr_assert_eq(set_pairs(2), VIRTIO_NET_OK);
    cr_assert_eq(set_pairs(PAIRS), VIRTIO_NET_OK);
}

Test(net_queues, each_queue_keeps_its_order)
{
    cr_assert_eq(set_pairs(PAIRS), VIRTIO_NET_OK);
    for (uint8_t k = 0; k < 40; k++)
        for (unsigned pair = 0; pair < PAIRS; pair++)
            send_frame(pair, k);
    expect_in_order(PAIRS, 40 * PAIRS);
}

/* INV-1 and GATE-2: of no queue anything leaves before its epoch, and then each in its order. */
Test(net_queues, INV1_the_gate_holds_all_of_them)
{
    uint8_t number;
    cr_assert_eq(set_pairs(PAIRS), VIRTIO_NET_OK);
    rp_gate_hold(board.env.gate, true);
    lock();
    rp_gate_cut(board.env.gate, 1);
    unlock();
    for (uint8_t k = 0; k < 20; k++)
        for (unsigned pair = 0; pair < PAIRS; pair++)
            send_frame(pair, k);
    for (unsigned pair = 0; pair < PAIRS; pair++)
        for (uint32_t head, len, k = 0; k < 20; k++)
            cr_assert(drv_done(&drv, TX(pair), WAIT_MS, &head, &len), "the gate takes them");
    cr_assert_eq(read_frame(50, &number), -1, "INV-1");
    lock();
    rp_gate_cut(board.env.gate, 2);
    unlock();
    rp_gate_release(board.env.gate, 2);
    expect_in_order(PAIRS, 20 * PAIRS);
}

static void post(unsigned pair, unsigned count)
{
    for (unsigned n = 0; n < count; n++) {
        struct seg s = {RX_AT(pair, n), 2048, true};
        drv_post(&drv, RX(pair), &s, 1);
    }
    drv_kick(&drv, RX(pair));
}

static void post_all(void)
{
    for (unsigned pair = 0; pair < PAIRS; pair++)
        post(pair, 100);
}

/* Sends 2 frames of each of 40 flows in; returns how many queues got some. In a flow they keep their order. What was taken is there
 * again for the next time: which pair a flow belongs to differs from one boot of the kernel to the next. */
static unsigned come_in(void)
{
    uint8_t f[64], next[40] = {0};
    unsigned got = 0, queues = 0, seen[PAIRS] = {0}, taken[PAIRS] = {0};
    for (uint8_t k = 0; k < 2; k++)
        for (uint8_t flow = 0; flow < 40; flow++) {
            frame(f, flow, k);
            cr_assert_eq(send(wire, f, sizeof(f), 0), (ssize_t)sizeof(f));
        }
    for (uint64_t end = rp_clock_ns() + WAIT_MS * 1000000ull; got < 80; usleep(200)) {
        cr_assert_lt(rp_clock_ns(), end, "%u of 80 frames came in", got);
        for (unsigned pair = 0; pair < PAIRS; pair++)
            for (uint32_t head, len; drv_used_idx(&drv, RX(pair)) != drv.q[RX(pair)].seen; got++) {
                cr_assert(drv_done(&drv, RX(pair), 0, &head, &len));
                taken[pair]++;
                const uint8_t *d = (const uint8_t *)drv_at(&drv, drv.q[RX(pair)].desc) + 16 * head, *p = drv_at(&drv, rp_ld64(d));
                if (len != HDR + 64 || p[HDR + 12] != TYPE >> 8 || p[HDR + 13] != (TYPE & 0xff)) {
                    got--;          /* the kernel's own chatter */
                    continue;
                }
                uint8_t flow = p[HDR + FLOW_AT];
                cr_assert(flow < 40 && p[HDR + NUMBER_AT] == next[flow], "flow %u is out of order", flow);
                next[flow]++;
                seen[pair]++;
            }
    }
    for (unsigned pair = 0; pair < PAIRS; pair++) {
        queues += seen[pair] > 0;
        post(pair, taken[pair]);
    }
    return queues;
}

Test(net_queues, what_comes_in_is_spread)
{
    post_all();
    cr_assert_eq(come_in(), 1u, "one pair is in use until the driver says more");
    cr_assert_eq(set_pairs(PAIRS), VIRTIO_NET_OK);
    cr_assert_gt(come_in(), 1u);
    cr_assert_eq(set_pairs(1), VIRTIO_NET_OK);
    cr_assert_eq(come_in(), 1u);
}

/* The number of pairs in use travels: the card that enters the epoch has them all in use at once. */
Test(net_queues, pairs_in_use_are_state)
{
    struct rp_sections sec = {0};
    struct rp_section one;
    struct rp_error err = {0};
    struct rp_nic_config less = config;
    size_t pos = 0;
    cr_assert_eq(set_pairs(PAIRS), VIRTIO_NET_OK);
    post_all();
    lock();
    nic.ops->stop(nic.dev);
    cr_assert_eq(nic.ops->save(nic.dev, &sec, SLOT, &err), 0);
    cr_assert(rp_sections_next(&sec, &pos, &one));
    nic.ops->destroy(nic.dev);
    less.queues = 2;
    make_card(&less);
    cr_assert_lt(nic.ops->load(nic.dev, &one, &err), 0);
    cr_assert(strstr(err.text, "4 queue pairs"), "%s", err.text);
    nic.ops->destroy(nic.dev);
    make_card(&config);
    cr_assert_eq(nic.ops->load(nic.dev, &one, &err), 0, "%s", err.text);
    nic.ops->start(nic.dev);
    unlock();
    cr_assert_gt(come_in(), 1u);
    for (unsigned pair = 0; pair < PAIRS; pair++)
        send_frame(pair, 0);
    expect_in_order(PAIRS, PAIRS);
    rp_sections_fini(&sec);
}

/* A driver that does not know of several pairs finds the control queue where it always was (virtio 1.2, section 5.1.2). */
Test(net_one_queue, the_control_queue_of_a_driver_without_MQ)
{
    uint8_t le[2] = {2, 0}, number;
    static const uint8_t other[6] = {2, 4, 6, 8, 10, 12};
    up_on(&config, 0);
    cr_assert_eq(command(2, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, other, 6), VIRTIO_NET_OK);
    cr_assert_eq(mmio_get(&board, drv.device, 4), 0x08060402u);
    cr_assert_eq(command(2, VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, le, 2), VIRTIO_NET_ERR);
    send_frame(0, 7);
    cr_assert_eq(read_frame(WAIT_MS, &number), 0);
    cr_assert_eq(number, 7);
}

/* A tap that was made for several queues serves a card with one. */
Test(net_one_queue, on_a_tap_for_several)
{
    struct rp_nic_config one = config;
    uint8_t number;
    one.queues = 1;
    up_on(&one, 0);
    cr_assert_eq(drv.nqueues, 3u);
    send_frame(0, 3);
    cr_assert_eq(read_frame(WAIT_MS, &number), 0);
    cr_assert_eq(number, 3);
}

/* A socket carries one queue: more are refused, with what to do. */
Test(net_one_queue, a_socket_has_no_more)
{
    struct rp_device none;
    struct rp_error err = {0};
    int sv[2];
    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, sv), 0);
    struct rp_nic_config cfg = {.kind = RP_NIC_FD, .fd = sv[0], .queues = 2};
    board_make(&board, 1u << 20);
    cr_assert_eq(rp_gate_create(board.loop, 256u << 10, &board.env.gate, &err), 0);
    cr_assert_lt(rp_virtio_net_create(&board.env, SLOT, &cfg, mac, &none, &err), 0);
    cr_assert_eq(err.exit, RP_EXIT_USAGE);
    cr_assert(strstr(err.text, "carries 1 queue, not 2"), "%s", err.text);
    board_free(&board);
    close(sv[1]);
}
