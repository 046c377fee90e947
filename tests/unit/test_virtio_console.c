/* virtio-console over a unix socket, a file and a terminal, driven through its queues without KVM. */
#include "tests/unit/guest_driver.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/virtio_console.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>

#define SLOT 2
#define RX 0
#define TX 1
#define TX_BUF 0x200000u
#define RX_BUF 0x800000u
#define WAIT_MS 5000
#define FEATURES (1ull << VIRTIO_CONSOLE_F_SIZE | 1ull << VIRTIO_CONSOLE_F_EMERG_WRITE | 1ull << VIRTIO_RING_F_EVENT_IDX)

static struct board board;
static struct rp_device con;
static struct drv drv;
static int peer = -1;
static char path[64];

static void lock(void) { pthread_mutex_lock(&board.lock); }
static void unlock(void) { pthread_mutex_unlock(&board.lock); }

static void connect_peer(void)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};

    snprintf(a.sun_path, sizeof(a.sun_path), "%s", path);
    peer = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    cr_assert_eq(connect(peer, (const struct sockaddr *)&a, sizeof(a)), 0);
}

static void make(const struct rp_chardev_config *cfg)
{
    struct rp_error err = {0};

    cr_assert_eq(rp_virtio_console_create(&board.env, SLOT, cfg, &con, &err), 0, "%s", err.text);
}

static void up(const struct rp_chardev_config *cfg)
{
    struct rp_error err = {0};

    board_make(&board, 32u << 20);
    cr_assert_eq(rp_gate_create(board.loop, 256u << 10, &board.env.gate, &err), 0, "%s", err.text);
    make(cfg);
    cr_assert_eq(rp_loop_start(board.loop, &err), 0);
    lock();
    drv_up(&drv, &board, SLOT, FEATURES);
    con.ops->start(con.dev);
    unlock();
}

static struct rp_chardev_config unix_config(void)
{
    return (struct rp_chardev_config){RP_SERIAL_UNIX, path};
}

static void setup(void)
{
    struct rp_chardev_config cfg = unix_config();

    snprintf(path, sizeof(path), "/tmp/reprise-console-%d", (int)getpid());
    up(&cfg);
    connect_peer();
}

static void teardown(void)
{
    board_free_with(&board, &con);
    if (peer >= 0)
        close(peer);
}

TestSuite(console, .init = setup, .fini = teardown, .timeout = 60);

static uint8_t pattern(uint64_t i) { return (uint8_t)(i * 7 + i / 251 + i / 65536); }

static void send_bytes(uint64_t from, uint32_t len)
{
    struct seg s = {TX_BUF + from % (4u << 20), len, false};
    uint8_t *p = rp_ram_at(&board.ram, rp_gpa(s.addr), len);

    cr_assert(p != NULL);
    for (uint32_t i = 0; i < len; i++)
        p[i] = pattern(from + i);
    drv_post(&drv, TX, &s, 1);
    drv_kick(&drv, TX);
}

/* Reads what comes and checks it; stops after `len` bytes. */
static void expect_bytes(uint64_t from, uint64_t len)
{
    static uint8_t buf[65536];

    for (uint64_t done = 0; done < len; ) {
        struct pollfd p = {.fd = peer, .events = POLLIN};
        size_t want = len - done < sizeof(buf) ? (size_t)(len - done) : sizeof(buf);
        ssize_t n;

        cr_assert_eq(poll(&p, 1, WAIT_MS), 1, "nothing more after %lu of %lu bytes", done, len);
        n = read(peer, buf, want);
        cr_assert_gt(n, 0);
        for (ssize_t i = 0; i < n; i++)
            cr_assert_eq(buf[i], pattern(from + done + (uint64_t)i), "byte %lu", from + done + (uint64_t)i);
        done += (uint64_t)n;
    }
}

static bool quiet(int ms)
{
    struct pollfd p = {.fd = peer, .events = POLLIN};

    return poll(&p, 1, ms) == 0;
}

Test(console, bytes_leave_in_order)
{
    uint64_t at = 0;
    uint32_t head, len;

    for (unsigned i = 0; i < 100; i++) {
        uint32_t n = 1 + i * 37 % 5000;

        send_bytes(at, n);
        expect_bytes(at, n);
        at += n;
        cr_assert(drv_done(&drv, TX, WAIT_MS, &head, &len));
    }
}

Test(console, input_goes_where_the_guest_has_room)
{
    struct seg s[3] = {{RX_BUF, 4, true}, {RX_BUF + 0x1000, 100, true}, {RX_BUF + 0x2000, 100, true}};
    uint32_t head, len;

    cr_assert_eq(write(peer, "hello, guest", 12), 12);
    usleep(20000);                          /* it waits for buffers */
    rp_ram_track(&board.ram, true);
    drv_post(&drv, RX, &s[0], 1);
    drv_post(&drv, RX, &s[1], 1);
    drv_kick(&drv, RX);
    cr_assert(drv_done(&drv, RX, WAIT_MS, &head, &len));
    cr_assert_eq(len, 4u);
    cr_assert(drv_done(&drv, RX, WAIT_MS, &head, &len));
    cr_assert_eq(len, 8u);
    cr_assert_arr_eq((char *)drv_at(&drv, RX_BUF), "hell", 4);
    cr_assert_arr_eq((char *)drv_at(&drv, RX_BUF + 0x1000), "o, guest", 8);
    cr_assert(rp_pageset_test(&board.ram.device_dirty, RX_BUF >> 12));
    cr_assert(rp_pageset_test(&board.ram.device_dirty, (RX_BUF >> 12) + 1));
    drv_post(&drv, RX, &s[2], 1);
    drv_kick(&drv, RX);
    cr_assert_eq(write(peer, "more", 4), 4);
    cr_assert(drv_done(&drv, RX, WAIT_MS, &head, &len));
    cr_assert_eq(len, 4u);
    cr_assert(drv_pending(&drv, RX + 1));
}

Test(console, much_input_arrives_whole)
{
    uint8_t out[9000];
    uint64_t got = 0;
    uint32_t head, len;

    for (unsigned i = 0; i < sizeof(out); i++)
        out[i] = pattern(i);
    for (unsigned i = 0; i < 32; i++) {
        struct seg s = {RX_BUF + i * 0x1000, 512, true};

        drv_post(&drv, RX, &s, 1);
    }
    drv_kick(&drv, RX);
    cr_assert_eq(write(peer, out, sizeof(out)), (ssize_t)sizeof(out));
    while (got < sizeof(out)) {
        const uint8_t *d, *p;

        cr_assert(drv_done(&drv, RX, WAIT_MS, &head, &len), "after %lu bytes", got);
        d = (const uint8_t *)drv_at(&drv, drv.q[RX].desc) + 16 * head;
        p = drv_at(&drv, rp_ld64(d));
        for (uint32_t i = 0; i < len; i++)
            cr_assert_eq(p[i], pattern(got + i));
        got += len;
    }
}

/* Kicks as a driver with event indexes does it: only when the device has asked for it. */
static void kick_if_asked(unsigned n, uint16_t before)
{
    uint16_t event = rp_ld16((uint8_t *)drv_at(&drv, drv.q[n].used) + 4 + 8u * drv.q[n].size);

    if ((uint16_t)(drv.q[n].avail_idx - event - 1) < (uint16_t)(drv.q[n].avail_idx - before))
        drv_kick(&drv, n);
}

static void post_room(uint32_t i, bool first)
{
    struct seg s = {RX_BUF + i * 4096u, 4096, true};
    uint16_t before = drv.q[RX].avail_idx;

    drv_post(&drv, RX, &s, 1);
    if (first)
        drv_kick(&drv, RX);
    else
        kick_if_asked(RX, before);
}

/* A guest that was busy, and finds all its buffers used: those that it then gives are asked for. */
Test(console, input_goes_on_after_it_has_used_all_room)
{
    enum { ROOM = 16, TOTAL = 400000 };
    static const uint8_t bytes[4096];
    size_t sent = 0, got = 0;
    uint32_t head, len;

    cr_assert_eq(fcntl(peer, F_SETFL, O_NONBLOCK), 0);
    for (uint32_t i = 0; i < ROOM; i++)
        post_room(i, i == 0);
    for (unsigned idle = 0; got < TOTAL && idle < 200; idle++) {
        ssize_t n;

        while (sent < TOTAL && (n = write(peer, bytes, TOTAL - sent < sizeof(bytes) ? TOTAL - sent : sizeof(bytes))) > 0)
            sent += (size_t)n;
        usleep(got ? 5000 : 100000);
        for (uint32_t i = 0; drv_done(&drv, RX, 0, &head, &len); i++) {
            got += len;
            post_room(i % ROOM, false);
            idle = 0;
        }
    }
    cr_assert_eq(got, (size_t)TOTAL, "the guest got %zu of %d bytes", got, TOTAL);
}

Test(console, output_waits_for_the_release_of_its_epoch)
{
    uint32_t head, len;

    rp_gate_hold(board.env.gate, true);
    rp_gate_cut(board.env.gate, 1);
    send_bytes(0, 100);
    cr_assert(drv_done(&drv, TX, WAIT_MS, &head, &len));
    cr_assert(quiet(50), "INV-1");
    rp_gate_cut(board.env.gate, 2);
    send_bytes(100, 50);
    rp_gate_release(board.env.gate, 2);
    expect_bytes(0, 100);
    cr_assert(quiet(50), "the second epoch is not committed");
    rp_gate_release(board.env.gate, 3);
    expect_bytes(100, 50);
}

/* CONSOLE-1: the gate fills up in the middle of a request; its bytes leave once, here and where the epoch is entered. */
Test(console, a_request_taken_in_part_is_gone_on_with_where_the_epoch_is_entered)
{
    struct rp_chardev_config cfg = unix_config();
    struct rp_sections sections = {0};
    struct rp_section sec;
    struct rp_error err = {0};
    struct rp_gate_stats stats;
    uint32_t head, len;
    uint64_t before, total = 300000;

    rp_gate_hold(board.env.gate, true);
    rp_gate_cut(board.env.gate, 1);
    send_bytes(0, (uint32_t)total);
    cr_assert_not(drv_done(&drv, TX, 200, &head, &len), "it is more than the gate keeps");
    lock();
    con.ops->stop(con.dev);
    cr_assert_eq(con.ops->save(con.dev, &sections, SLOT, &err), 0);
    unlock();
    rp_gate_release(board.env.gate, 2);     /* the epoch is safe: what was taken leaves */
    rp_gate_cut(board.env.gate, 2);
    for (int i = 0; i < 5000 && (rp_gate_stats(board.env.gate, &stats), stats.waiting_frames > 0); i++)
        usleep(1000);
    cr_assert_eq(stats.waiting_frames, 0u);
    before = stats.bytes;
    cr_assert_gt(before, 50000u);
    cr_assert_lt(before, total);
    expect_bytes(0, before);
    lock();
    con.ops->destroy(con.dev);
    close(peer);
    rp_gate_hold(board.env.gate, false);
    make(&cfg);
    cr_assert(rp_sections_find(&sections, con.section, SLOT, &sec));
    cr_assert_eq(con.ops->load(con.dev, &sec, &err), 0, "%s", err.text);
    connect_peer();
    con.ops->start(con.dev);
    unlock();
    expect_bytes(before, total - before);
    cr_assert(drv_done(&drv, TX, WAIT_MS, &head, &len));
    cr_assert(quiet(50));
    rp_sections_fini(&sections);
}

Test(console, nothing_moves_while_it_stands_still)
{
    struct seg s = {RX_BUF, 64, true};
    uint32_t head, len;

    lock();
    con.ops->stop(con.dev);
    unlock();
    drv_post(&drv, RX, &s, 1);
    drv_kick(&drv, RX);
    cr_assert_eq(write(peer, "x", 1), 1);
    send_bytes(0, 10);
    cr_assert_not(drv_done(&drv, RX, 50, &head, &len), "CONSOLE-2");
    cr_assert(quiet(10));
    lock();
    con.ops->start(con.dev);
    unlock();
    cr_assert(drv_done(&drv, RX, WAIT_MS, &head, &len));
    expect_bytes(0, 10);
}

Test(console, a_guest_in_distress_writes_without_queues)
{
    lock();
    mmio_set(&board, drv.device + offsetof(struct virtio_console_config, emerg_wr), 4, pattern(0));
    unlock();
    expect_bytes(0, 1);
}

Test(console, a_client_that_does_not_read_does_not_stop_the_guest)
{
    uint32_t head, len;

    for (unsigned i = 0; i < 64; i++) {
        send_bytes(0, 64u << 10);
        cr_assert(drv_done(&drv, TX, WAIT_MS, &head, &len), "INV-5, request %u", i);
    }
}

Test(console, hostile_buffers_break_only_the_device)
{
    struct seg none = {RX_BUF, 0, true}, out = {RX_BUF, 64, false}, far = {1u << 30, 64, false};

    drv_post(&drv, RX, &none, 1);
    drv_kick(&drv, RX);
    cr_assert_eq(write(peer, "x", 1), 1);
    cr_assert(drv_broken(&drv, WAIT_MS));
    lock();
    drv_up(&drv, &board, SLOT, FEATURES);
    unlock();
    drv_post(&drv, RX, &out, 1);
    drv_kick(&drv, RX);
    cr_assert(drv_broken(&drv, WAIT_MS));
    lock();
    drv_up(&drv, &board, SLOT, FEATURES);
    unlock();
    drv_post(&drv, TX, &far, 1);
    drv_kick(&drv, TX);
    cr_assert(drv_broken(&drv, WAIT_MS));
}

Test(console_tty, shows_its_size_and_says_when_it_changes, .timeout = 60)
{
    struct rp_chardev_config cfg = {RP_SERIAL_STDIO, NULL};
    struct winsize size = {.ws_col = 100, .ws_row = 40};
    int master, slave;
    uint32_t config = 0;

    cr_assert_eq(openpty(&master, &slave, NULL, NULL, &size), 0);
    cr_assert_eq(dup2(slave, STDIN_FILENO), STDIN_FILENO);
    up(&cfg);
    lock();
    cr_assert_eq(mmio_get(&board, drv.device, 4), 40u << 16 | 100u);
    unlock();
    size.ws_col = 132;
    cr_assert_eq(ioctl(master, TIOCSWINSZ, &size), 0);
    kill(getpid(), SIGWINCH);       /* which the kernel sends to a terminal's foreground processes */
    for (int i = 0; i < WAIT_MS && config != (40u << 16 | 132u); i++) {
        usleep(1000);
        lock();
        config = (uint32_t)mmio_get(&board, drv.device, 4);
        unlock();
    }
    cr_assert_eq(config, 40u << 16 | 132u);
    cr_assert(drv_pending(&drv, 0), "configuration interrupt");
    teardown();
    close(master);
    close(slave);
}

Test(console_table, tiles)
{
    struct rp_error err = {0};

    cr_assert_eq(rp_state_check(&rp_virtio_console_table, &err), 0, "%s", err.text);
}
