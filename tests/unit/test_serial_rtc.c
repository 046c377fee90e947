/* The 16550A and the clock chip, by their ports, without KVM. */
#include "tests/unit/guest_driver.h"
#include "vmm/rtc.h"
#include "vmm/serial.h"

#include <errno.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>

#define NS 1000000000ull
#define COM1 0x3f8u
#define RTC_SECONDS_ALARM 1
#define RTC_MINUTES_ALARM 3
#define RTC_HOURS_ALARM 5
#define RTC_B 11
#define RTC_C 12
#define B_24H_BINARY 0x06
#define B_ALARM 0x20
#define C_ALARM 0x20

static struct board board;
static struct rp_device dev;

/* As serial.c lays it out; the table is what it is encoded by. */
struct serial_state { uint8_t ier, fcr, lcr, mcr, lsr, scr, dll, dlm, thre_pending, pad[3]; uint32_t rx_len; uint8_t rx[16]; };

/* INV-4: more received bytes than the FIFO that is switched on holds would let a guest in loopback write beyond it. */
Test(serial, hostile_state_is_refused)
{
    struct rp_chardev_config null = {.kind = RP_SERIAL_NULL};
    struct serial_state s = {.mcr = 0x10, .rx_len = 16};
    struct rp_sections sections = {0};
    struct rp_section sec;
    struct rp_error err = {0};
    uint8_t v = 'A';

    cr_assert_eq(rp_serial_table.size, sizeof(s));
    board_make(&board, 16u << 20);
    cr_assert_eq(rp_serial_create(&board.pio, NULL, board.loop, &null, &dev, &err), 0, "%s", err.text);
    for (unsigned fifo = 0; fifo < 2; fifo++) {
        s.fcr = (uint8_t)fifo;
        rp_sections_reset(&sections);
        cr_assert_eq(rp_sections_add(&sections, &rp_serial_table, 0, &s, NULL), 0);
        cr_assert(rp_sections_find(&sections, "serial", 0, &sec));
        cr_assert_eq(dev.ops->load(dev.dev, &sec, &err), fifo ? 0 : -EBADMSG, "%s", err.text);
        for (unsigned i = 0; i < 64; i++)
            rp_bus_access(&board.pio, COM1, &v, 1, true);
    }
    rp_sections_fini(&sections);
}

static uint8_t uart(uint8_t reg, bool write, uint8_t v)
{
    rp_bus_access(&board.pio, COM1 + reg, &v, 1, write);
    return v;
}

/* `n` letters, typed before the guest looks. */
static void type_ahead(int *terminal, unsigned n)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    struct rp_chardev_config cfg = {.kind = RP_SERIAL_UNIX, .path = a.sun_path};
    struct rp_error err = {0};

    snprintf(a.sun_path, sizeof(a.sun_path), "/tmp/serial-test-%d", (int)getpid());
    board_make(&board, 16u << 20);
    cr_assert_eq(rp_serial_create(&board.pio, NULL, board.loop, &cfg, &dev, &err), 0, "%s", err.text);
    *terminal = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    cr_assert_eq(connect(*terminal, (struct sockaddr *)&a, sizeof(a)), 0);
    for (unsigned i = 0; i < n; i++)
        cr_assert_eq(write(*terminal, &(char){(char)('a' + i % 26)}, 1), 1);
    while (rp_loop_turn(board.loop))
        continue;
}

static bool there_is(void) { return uart(5, false, 0) & 1; }

/* Linux empties the FIFO before it opens the port, and looks for itself in loopback: what comes after goes on coming. */
Test(serial, input_goes_on_after_the_receiver_was_emptied, .timeout = 30)
{
    int terminal;
    unsigned n = 0;

    type_ahead(&terminal, 100);
    uart(2, true, 0x07);                /* FIFOs on and empty */
    cr_assert(there_is(), "nothing comes after the FIFO was emptied");
    uart(2, true, 0x07);
    cr_assert(there_is());
    uart(4, true, 0x10);                /* loopback, with an empty FIFO */
    uart(2, true, 0x03);
    cr_assert_not(there_is());
    uart(4, true, 0x0b);
    cr_assert(there_is(), "nothing comes after loopback");
    dev.ops->reset(dev.dev);
    dev.ops->start(dev.dev);
    cr_assert(there_is(), "nothing comes after a reset");
    for (; there_is(); n++)
        uart(0, false, 0);
    cr_assert_gt(n, 40u);
    close(terminal);
    board_free_with(&board, &dev);
}

static uint8_t get(uint8_t reg)
{
    uint8_t v;

    rp_bus_access(&board.pio, RP_RTC_PORT, &reg, 1, true);
    rp_bus_access(&board.pio, RP_RTC_PORT + 1, &v, 1, false);
    return v;
}

static void set(uint8_t reg, uint8_t v)
{
    rp_bus_access(&board.pio, RP_RTC_PORT, &reg, 1, true);
    rp_bus_access(&board.pio, RP_RTC_PORT + 1, &v, 1, true);
}

static void set_alarm(uint64_t second)
{
    time_t t = (time_t)second;
    struct tm tm;

    gmtime_r(&t, &tm);
    set(RTC_B, B_24H_BINARY);
    set(RTC_SECONDS_ALARM, (uint8_t)tm.tm_sec);
    set(RTC_MINUTES_ALARM, (uint8_t)tm.tm_min);
    set(RTC_HOURS_ALARM, (uint8_t)tm.tm_hour);
    (void)get(RTC_C);
    set(RTC_B, B_24H_BINARY | B_ALARM);
}

static void wait_until(uint64_t wall_ns)
{
    while (rp_wall_ns() < wall_ns)
        usleep(200);
}

static void stands(bool on)
{
    pthread_mutex_lock(&board.lock);
    (on ? dev.ops->stop : dev.ops->start)(dev.dev);
    pthread_mutex_unlock(&board.lock);
}

static void make_rtc(uint64_t *second)
{
    struct rp_error err = {0};

    board_make(&board, 16u << 20);
    cr_assert_eq(rp_rtc_create(&board.pio, NULL, board.loop, true, &dev, &err), 0, "%s", err.text);
    cr_assert_eq(rp_loop_start(board.loop, &err), 0);
    stands(false);
    *second = rp_wall_ns() / NS + 2;
    pthread_mutex_lock(&board.lock);
    set_alarm(*second);
    pthread_mutex_unlock(&board.lock);
}

static bool alarm_came(uint64_t second)
{
    wait_until(second * NS + NS / 2);
    pthread_mutex_lock(&board.lock);
    bool came = get(RTC_C) & C_ALARM;
    pthread_mutex_unlock(&board.lock);
    return came;
}

Test(rtc, an_alarm_comes, .timeout = 30)
{
    uint64_t second;

    make_rtc(&second);
    cr_assert(alarm_came(second));
}

/* A machine that stood still while the second turned, for a cut or for a while. */
Test(rtc, an_alarm_whose_second_began_in_a_cut_comes, .timeout = 30)
{
    uint64_t second;

    make_rtc(&second);
    wait_until(second * NS - 2000000);
    stands(true);
    wait_until(second * NS + NS + 100000000);       /* it is over, even */
    stands(false);
    cr_assert(alarm_came(second + 1));
}

/* The same, entered by another process: the alarm's second passed on the way. */
Test(rtc, an_alarm_that_was_due_on_the_way_comes, .timeout = 30)
{
    struct rp_sections sections = {0};
    struct rp_section sec;
    struct rp_error err = {0};
    uint64_t second;

    make_rtc(&second);
    stands(true);
    cr_assert_eq(dev.ops->save(dev.dev, &sections, 0, &err), 0);
    dev.ops->destroy(dev.dev);
    wait_until(second * NS + 10000000);
    cr_assert_eq(rp_rtc_create(&board.pio, NULL, board.loop, true, &dev, &err), 0, "%s", err.text);
    cr_assert(rp_sections_find(&sections, "rtc", 0, &sec));
    cr_assert_eq(dev.ops->load(dev.dev, &sec, &err), 0, "%s", err.text);
    stands(false);
    cr_assert(alarm_came(second));
    rp_sections_fini(&sections);
}
