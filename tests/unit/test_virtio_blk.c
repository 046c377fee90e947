/* virtio-blk on real files (and an NBD export when qemu-nbd is there), driven through its queues without KVM. */
#include "tests/unit/guest_driver.h"

#include "vmm/disk.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/virtio_blk.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define DISK_BYTES (8u << 20)
#define SLOT 2
#define HEADER 0x80000u
#define STATUS 0x81000u
#define DATA 0x90000u
#define WAIT_MS 5000

static struct board board;
static struct rp_device blk;
static struct drv drv;
static char dir[64], image[96];

static int create(struct rp_device *out, const char *path, bool readonly, unsigned queues, struct rp_error *err)
{
    struct rp_disk_config cfg = {.path = path, .fd = -1, .readonly = readonly, .serial = "serial-42", .queues = queues};

    return rp_virtio_blk_create(&board.env, SLOT, &cfg, out, err);
}

static void start(struct rp_device *d)
{
    pthread_mutex_lock(&board.lock);
    d->ops->start(d->dev);
    pthread_mutex_unlock(&board.lock);
}
static void stop(struct rp_device *d)
{
    pthread_mutex_lock(&board.lock);
    d->ops->stop(d->dev);
    pthread_mutex_unlock(&board.lock);
}
static void destroy(struct rp_device *d)
{
    pthread_mutex_lock(&board.lock);
    d->ops->destroy(d->dev);
    pthread_mutex_unlock(&board.lock);
}

static void make_image(void)
{
    int fd;

    snprintf(dir, sizeof(dir), "/tmp/reprise-blk-XXXXXX");
    cr_assert(mkdtemp(dir));
    snprintf(image, sizeof(image), "%s/disk.img", dir);
    fd = open(image, O_CREAT | O_RDWR, 0600);
    cr_assert_geq(fd, 0);
    cr_assert_eq(ftruncate(fd, DISK_BYTES), 0);
    close(fd);
}

static void setup(void)
{
    struct rp_error err = {0};

    make_image();
    board_make(&board, 16u << 20);
    cr_assert_eq(create(&blk, image, false, 1, &err), 0, "%s", err.text);
    cr_assert_eq(rp_loop_start(board.loop, &err), 0);
    drv_up(&drv, &board, SLOT, 1ull << VIRTIO_RING_F_EVENT_IDX | 1ull << VIRTIO_RING_F_INDIRECT_DESC);
    start(&blk);
}

static void teardown(void)
{
    board_free_with(&board, &blk);
    unlink(image);
    rmdir(dir);
}
TestSuite(blk, .init = setup, .fini = teardown, .timeout = 60);

static void header(uint32_t type, uint64_t sector)
{
    uint8_t *h = drv_at(&drv, HEADER);

    rp_st32(h, type);
    rp_st32(h + 4, 0);
    rp_st64(h + 8, sector);
    *(uint8_t *)drv_at(&drv, STATUS) = 0xee;
}

/* One request with `len` bytes of data at DATA; returns the status byte. */
static uint8_t ask_on(unsigned queue, uint32_t type, uint64_t sector, uint32_t len)
{
    struct seg s[3] = {{HEADER, 16, false}, {DATA, len, type == VIRTIO_BLK_T_IN || type == VIRTIO_BLK_T_GET_ID}, {STATUS, 1, true}};
    uint32_t head, used;

    header(type, sector);
    if (!len)
        s[1] = s[2];
    drv_post(&drv, queue, s, len ? 3 : 2);
    drv_kick(&drv, queue);
    cr_assert(drv_done(&drv, queue, WAIT_MS, &head, &used), "request type %u did not end", type);
    return *(uint8_t *)drv_at(&drv, STATUS);
}
static uint8_t ask(uint32_t type, uint64_t sector, uint32_t len) { return ask_on(0, type, sector, len); }

static void fill(uint8_t seed, uint32_t len)
{
    uint8_t *p = drv_at(&drv, DATA);

    for (uint32_t i = 0; i < len; i++)
        p[i] = (uint8_t)(seed + i * 7 + i / 512);
}

static void expect(uint8_t seed, uint32_t len)
{
    const uint8_t *p = drv_at(&drv, DATA);

    for (uint32_t i = 0; i < len; i++)
        cr_assert_eq(p[i], (uint8_t)(seed + i * 7 + i / 512), "byte %u", i);
}

static void exercise(void)
{
    fill(9, 65536);
    cr_assert_eq(ask(VIRTIO_BLK_T_OUT, 100, 65536), VIRTIO_BLK_S_OK);
    cr_assert_eq(ask(VIRTIO_BLK_T_FLUSH, 0, 0), VIRTIO_BLK_S_OK);
    memset(drv_at(&drv, DATA), 0, 65536);
    cr_assert_eq(ask(VIRTIO_BLK_T_IN, 100, 65536), VIRTIO_BLK_S_OK);
    expect(9, 65536);
    rp_st64(drv_at(&drv, DATA), 100);
    rp_st32((uint8_t *)drv_at(&drv, DATA) + 8, 16);
    rp_st32((uint8_t *)drv_at(&drv, DATA) + 12, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP);
    cr_assert_eq(ask(VIRTIO_BLK_T_WRITE_ZEROES, 0, 16), VIRTIO_BLK_S_OK);
    rp_st32((uint8_t *)drv_at(&drv, DATA) + 12, 0);
    cr_assert_eq(ask(VIRTIO_BLK_T_DISCARD, 0, 16), VIRTIO_BLK_S_OK);
    cr_assert_eq(ask(VIRTIO_BLK_T_IN, 100, 8192), VIRTIO_BLK_S_OK);
    for (unsigned i = 0; i < 8192; i++)
        cr_assert_eq(((uint8_t *)drv_at(&drv, DATA))[i], 0);
}

Test(blk, write_flush_read_zero_discard)
{
    exercise();
}

Test(blk, capacity_and_serial)
{
    cr_assert_eq(mmio_get(&board, drv.device, 8), DISK_BYTES / 512);
    cr_assert_eq(ask(VIRTIO_BLK_T_GET_ID, 0, 20), VIRTIO_BLK_S_OK);
    cr_assert_str_eq((char *)drv_at(&drv, DATA), "serial-42");
    cr_assert_eq(ask(VIRTIO_BLK_T_GET_ID, 0, 8), VIRTIO_BLK_S_IOERR);
}

Test(blk, requests_that_make_no_sense_fail_and_the_disk_goes_on)
{
    uint8_t *d;

    cr_assert_eq(ask(VIRTIO_BLK_T_IN, DISK_BYTES / 512, 512), VIRTIO_BLK_S_IOERR);
    cr_assert_eq(ask(VIRTIO_BLK_T_IN, DISK_BYTES / 512 - 1, 1024), VIRTIO_BLK_S_IOERR);
    cr_assert_eq(ask(VIRTIO_BLK_T_OUT, UINT64_MAX, 512), VIRTIO_BLK_S_IOERR);
    cr_assert_eq(ask(VIRTIO_BLK_T_OUT, UINT64_MAX / 512, 512), VIRTIO_BLK_S_IOERR);
    cr_assert_eq(ask(VIRTIO_BLK_T_IN, 0, 513), VIRTIO_BLK_S_IOERR);
    cr_assert_eq(ask(77, 0, 512), VIRTIO_BLK_S_UNSUPP);
    d = drv_at(&drv, DATA);
    rp_st64(d, UINT64_MAX - 3);
    rp_st32(d + 8, 8);
    rp_st32(d + 12, 0);
    cr_assert_eq(ask(VIRTIO_BLK_T_WRITE_ZEROES, 0, 16), VIRTIO_BLK_S_IOERR);
    rp_st32(d + 12, 0xff);
    cr_assert_eq(ask(VIRTIO_BLK_T_DISCARD, 0, 16), VIRTIO_BLK_S_UNSUPP);
    cr_assert_eq(ask(VIRTIO_BLK_T_IN, 0, 512), VIRTIO_BLK_S_OK);
}

Test(blk, no_status_byte_breaks_the_device_until_reset)
{
    struct seg s[1] = {{HEADER, 16, false}};
    uint32_t head, len;

    header(VIRTIO_BLK_T_OUT, 0);
    drv_post(&drv, 0, s, 1);
    drv_kick(&drv, 0);
    cr_assert(drv_broken(&drv, WAIT_MS));
    drv_kick(&drv, 0);
    cr_assert_not(drv_done(&drv, 0, 50, &head, &len), "VIRTIO-1");
    pthread_mutex_lock(&board.lock);
    drv_up(&drv, &board, SLOT, 0);
    pthread_mutex_unlock(&board.lock);
    cr_assert_eq(ask(VIRTIO_BLK_T_IN, 0, 512), VIRTIO_BLK_S_OK);
}

Test(blk, header_too_short_or_descriptor_outside_ram)
{
    struct seg s[2] = {{HEADER, 15, false}, {STATUS, 1, true}};

    drv_post(&drv, 0, s, 2);
    drv_kick(&drv, 0);
    cr_assert(drv_broken(&drv, WAIT_MS));
}

/* BLK-2: a state that names a descriptor twice is one that nobody can enter, so a guest cannot bring it about. */
Test(blk, a_request_that_is_offered_twice_breaks_the_device)
{
    struct rp_sections sec = {0};
    struct rp_section one;
    struct rp_error err = {0};
    size_t pos = 0;
    struct seg s[3] = {{HEADER, 16, false}, {DATA, 4096, true}, {STATUS, 1, true}};
    uint16_t head;

    header(VIRTIO_BLK_T_IN, 0);
    head = drv_post(&drv, 0, s, 3);
    drv_offer(&drv, 0, head);
    drv_kick(&drv, 0);
    cr_assert(drv_broken(&drv, WAIT_MS));
    stop(&blk);
    cr_assert_eq(blk.ops->drain(blk.dev, &err), 0);
    cr_assert_eq(blk.ops->save(blk.dev, &sec, SLOT, &err), 0);
    cr_assert(rp_sections_next(&sec, &pos, &one));
    destroy(&blk);
    cr_assert_eq(create(&blk, image, false, 1, &err), 0, "%s", err.text);
    cr_assert_eq(blk.ops->load(blk.dev, &one, &err), 0, "%s", err.text);
    start(&blk);
    drv_up(&drv, &board, SLOT, 0);
    drv.heap = 0x200000;
    cr_assert_eq(ask(VIRTIO_BLK_T_IN, 0, 4096), VIRTIO_BLK_S_OK, "after a reset it goes on");
    rp_sections_fini(&sec);
}

Test(blk, many_requests_in_flight_each_completes_once)
{
    enum { N = 80 };
    uint8_t seen[256] = {0};

    for (unsigned round = 0; round < 20; round++) {
        memset(seen, 0, sizeof(seen));
        header(round % 2 ? VIRTIO_BLK_T_IN : VIRTIO_BLK_T_OUT, 8 * round);
        for (unsigned i = 0; i < N; i++) {
            struct seg s[3] = {{HEADER, 16, false}, {DATA + 4096 * i, 4096, round % 2}, {STATUS + i, 1, true}};

            drv_post(&drv, 0, s, 3);
        }
        drv_kick(&drv, 0);
        for (unsigned i = 0; i < N; i++) {
            uint32_t head, len;

            cr_assert(drv_done(&drv, 0, WAIT_MS, &head, &len));
            cr_assert_eq(seen[head % 256]++, 0, "head %u twice", head);
        }
    }
}

Test(blk, a_locked_disk_is_refused_with_its_name)
{
    struct rp_device second;
    struct rp_disk_config cfg = {.path = image, .fd = -1, .queues = 1};
    struct rp_error err = {0};

    cr_assert_eq(rp_virtio_blk_create(&board.env, 9, &cfg, &second, &err), -EBUSY);
    cr_assert(strstr(err.text, "locked by another VM"), "%s", err.text);
    cfg.path = "/nonexistent/disk";
    cr_assert_eq(rp_virtio_blk_create(&board.env, 9, &cfg, &second, &err), -ENOENT);
    cfg.path = dir;
    cfg.readonly = true;
    cr_assert_eq(rp_virtio_blk_create(&board.env, 9, &cfg, &second, &err), -EINVAL);
    destroy(&blk);
    cfg.path = image;
    cfg.readonly = false;
    cr_assert_eq(rp_virtio_blk_create(&board.env, 9, &cfg, &blk, &err), 0, "its lock has gone with the other: %s", err.text);
}

Test(blk, read_only_disk_takes_no_write)
{
    struct rp_error err = {0};

    destroy(&blk);
    cr_assert_eq(create(&blk, image, true, 1, &err), 0, "%s", err.text);
    start(&blk);
    pthread_mutex_lock(&board.lock);
    drv_find(&drv, &board, SLOT);
    cr_assert(drv_offered(&drv) & 1ull << VIRTIO_BLK_F_RO);
    drv_up(&drv, &board, SLOT, 1ull << VIRTIO_BLK_F_RO);
    pthread_mutex_unlock(&board.lock);
    cr_assert_eq(ask(VIRTIO_BLK_T_OUT, 0, 512), VIRTIO_BLK_S_IOERR);
    cr_assert_eq(ask(VIRTIO_BLK_T_WRITE_ZEROES, 0, 16), VIRTIO_BLK_S_IOERR);
    cr_assert_eq(ask(VIRTIO_BLK_T_IN, 0, 512), VIRTIO_BLK_S_OK);
}

/* BLK-1, BLK-2: requests taken before a stop do not complete into RAM, travel as in flight, and complete once in the
 * machine that enters the epoch. */
/* As a standby makes it: loaded while somebody else has the disk, loaded again and opened when that has gone. */
static void enter_late(const struct rp_section *sec)
{
    struct rp_device first;
    struct rp_disk_config cfg = {.path = image, .fd = -1, .serial = "serial-42", .queues = 1};
    struct rp_error err = {0};

    blk.ops->destroy(blk.dev);
    cr_assert_eq(rp_virtio_blk_create(&board.env, 9, &cfg, &first, &err), 0, "%s", err.text);
    board.env.disks_later = true;
    cr_assert_eq(create(&blk, image, false, 1, &err), 0, "%s", err.text);
    board.env.disks_later = false;
    cr_assert_eq(blk.ops->load(blk.dev, sec, &err), 0, "%s", err.text);
    blk.ops->reset(blk.dev);
    cr_assert_eq(rp_virtio_blk_open(&blk, &cfg, &err), -EBUSY);
    first.ops->destroy(first.dev);
    cr_assert_eq(rp_virtio_blk_open(&blk, &cfg, &err), 0, "%s", err.text);
    cr_assert_eq(rp_virtio_blk_open(&blk, &cfg, &err), 0, "it is open: %s", err.text);
    cr_assert_eq(blk.ops->load(blk.dev, sec, &err), 0, "%s", err.text);
}

static void cut_with_writes_in_flight(bool late)
{
    enum { N = 16 };
    struct rp_sections sec = {0};
    struct rp_section one;
    struct rp_error err = {0};
    uint32_t head, len;
    size_t pos = 0;

    fill(3, 4096 * N);
    pthread_mutex_lock(&board.lock);        /* the io thread waits: nothing is served before the cut */
    header(VIRTIO_BLK_T_OUT, 0);
    for (unsigned i = 0; i < N; i++) {
        struct seg s[3] = {{HEADER + 16 * i, 16, false}, {DATA + 4096 * i, 4096, false}, {STATUS + i, 1, true}};
        uint8_t *h = drv_at(&drv, HEADER + 16 * i);

        rp_st32(h, VIRTIO_BLK_T_OUT);
        rp_st64(h + 8, 8 * i);
        drv_post(&drv, 0, s, 3);
    }
    /* as if the chains had been taken and the disk were slow: the epoch says all are in flight */
    blk.ops->stop(blk.dev);
    mmio_set(&board, drv.q[0].notify, 2, 0);
    cr_assert_eq(blk.ops->save(blk.dev, &sec, SLOT, &err), 0);
    cr_assert(rp_sections_next(&sec, &pos, &one));
    struct any { uint8_t bytes[1]; } *state = calloc(1, rp_virtio_blk_table.size);
    cr_assert_eq(rp_state_decode(&rp_virtio_blk_table, state, one.bytes, one.len, &err), 0, "%s", err.text);
    pthread_mutex_unlock(&board.lock);

    usleep(50000);
    cr_assert_eq(drv_used_idx(&drv, 0), 0, "VIRTIO-2: served while stopped");

    /* entered again: the same chains must complete exactly once each */
    pthread_mutex_lock(&board.lock);
    if (late) {
        enter_late(&one);
    } else {
        blk.ops->destroy(blk.dev);
        cr_assert_eq(create(&blk, image, false, 1, &err), 0, "%s", err.text);
        cr_assert_eq(blk.ops->load(blk.dev, &one, &err), 0, "%s", err.text);
    }
    blk.ops->start(blk.dev);
    pthread_mutex_unlock(&board.lock);
    for (unsigned i = 0; i < N; i++)
        cr_assert(drv_done(&drv, 0, WAIT_MS, &head, &len), "request %u of %u is lost", i, N);
    cr_assert_not(drv_done(&drv, 0, 50, &head, &len), "a request completed twice");
    memset(drv_at(&drv, DATA), 0, 4096 * N);
    drv.heap = 0x200000;
    cr_assert_eq(ask(VIRTIO_BLK_T_IN, 0, 4096 * N), VIRTIO_BLK_S_OK);
    expect(3, 4096 * N);
    free(state);
    rp_sections_fini(&sec);
}

Test(blk, in_flight_requests_survive_a_cut)
{
    cut_with_writes_in_flight(false);
}

Test(blk, a_disk_that_is_opened_late_gets_what_was_in_flight)
{
    cut_with_writes_in_flight(true);
}

/* The text of a section, to look into a device's private state. */
static char *printed(const struct rp_section *sec)
{
    void *state = calloc(1, rp_virtio_blk_table.size);
    char *text = NULL;
    size_t size;
    struct rp_error err = {0};
    FILE *f = open_memstream(&text, &size);

    cr_assert_eq(rp_state_decode(&rp_virtio_blk_table, state, sec->bytes, sec->len, &err), 0, "%s", err.text);
    rp_state_print(&rp_virtio_blk_table, state, f, 0);
    fclose(f);
    free(state);
    return text;
}

/* The same with a request really at the disk when the machine is cut (a flush is never done at submission): the host
 * finishes it while the machine stands still, RAM does not change, and it completes once, here or in the other one. */
static void cut_with_a_flush_in_flight(bool elsewhere)
{
    struct rp_sections sec = {0};
    struct rp_section one;
    struct rp_error err = {0};
    uint32_t head, len;
    struct seg s[2] = {{HEADER, 16, false}, {STATUS, 1, true}};
    bool in_flight = false;

    for (int tries = 0; !in_flight; tries++) {
        size_t pos = 0;

        cr_assert_lt(tries, 2000, "never saw one in flight");
        header(VIRTIO_BLK_T_FLUSH, 0);
        drv_post(&drv, 0, s, 2);
        drv_kick(&drv, 0);
        usleep((useconds_t)tries % 100);
        pthread_mutex_lock(&board.lock);
        blk.ops->stop(blk.dev);
        rp_sections_reset(&sec);
        cr_assert_eq(blk.ops->save(blk.dev, &sec, SLOT, &err), 0);
        cr_assert(rp_sections_next(&sec, &pos, &one));
        char *text = printed(&one);
        in_flight = strstr(text, "inflight[0]") != NULL;
        free(text);
        uint16_t used = drv_used_idx(&drv, 0);
        cr_assert_eq(blk.ops->drain(blk.dev, &err), 0);
        cr_assert_eq(drv_used_idx(&drv, 0), used, "BLK-1");
        if (in_flight && elsewhere) {
            blk.ops->destroy(blk.dev);
            cr_assert_eq(create(&blk, image, false, 1, &err), 0, "%s", err.text);
            cr_assert_eq(blk.ops->load(blk.dev, &one, &err), 0, "%s", err.text);
        }
        blk.ops->start(blk.dev);
        pthread_mutex_unlock(&board.lock);
        cr_assert(drv_done(&drv, 0, WAIT_MS, &head, &len), "lost");
    }
    cr_assert_not(drv_done(&drv, 0, 20, &head, &len), "completed twice");
    rp_sections_fini(&sec);
}

Test(blk, a_request_at_the_disk_completes_after_the_cut)
{
    cut_with_a_flush_in_flight(false);
}

Test(blk, a_request_at_the_disk_is_issued_again_elsewhere)
{
    cut_with_a_flush_in_flight(true);
}

Test(blk, hostile_state_is_refused)
{
    struct rp_sections sec = {0};
    struct rp_section one;
    struct rp_error err = {0};
    size_t pos = 0;

    stop(&blk);
    cr_assert_eq(blk.ops->save(blk.dev, &sec, SLOT, &err), 0);
    cr_assert(rp_sections_next(&sec, &pos, &one));
    for (uint32_t cut = 0; cut < one.len; cut += 7) {
        struct rp_section part = one;

        part.len = cut;
        cr_assert_lt(blk.ops->load(blk.dev, &part, &err), 0, "cut at %u of %u was taken", cut, one.len);
    }
    cr_assert_eq(blk.ops->load(blk.dev, &one, &err), 0, "%s", err.text);
    rp_sections_fini(&sec);
}

/* As virtio_blk.c lays it out. */
struct blk_state { struct rp_virtio_state virtio; uint64_t size_bytes; uint32_t ninflight, pad; struct { uint16_t queue, head; } inflight[4096]; };

/* INV-4: a queue of an impossible size is one thing, a request in flight beyond every real one another, which is looked at first. */
Test(blk, a_request_in_flight_beyond_the_queue_is_refused)
{
    struct rp_sections was = {0}, forged = {0};
    struct rp_section one;
    struct rp_error err = {0};
    struct blk_state *s = calloc(1, sizeof(*s));
    size_t pos = 0;

    cr_assert_eq(rp_virtio_blk_table.size, sizeof(*s));
    stop(&blk);
    cr_assert_eq(blk.ops->save(blk.dev, &was, SLOT, &err), 0);
    cr_assert(rp_sections_next(&was, &pos, &one));
    cr_assert_eq(rp_section_decode(&rp_virtio_blk_table, &one, s, &err), 0, "%s", err.text);
    s->virtio.queues[0].size = 65535;
    s->ninflight = 1;
    s->inflight[0].head = 60000;
    cr_assert_eq(rp_sections_add(&forged, &rp_virtio_blk_table, SLOT, s, NULL), 0);
    cr_assert(rp_sections_find(&forged, "virtio-blk", SLOT, &one));
    cr_assert_eq(blk.ops->load(blk.dev, &one, &err), -EBADMSG);
    cr_assert(strstr(err.text, "descriptor 60000"), "%s", err.text);
    free(s);
    rp_sections_fini(&was);
    rp_sections_fini(&forged);
}

Test(blk, state_table_tiles)
{
    struct rp_error err = {0};

    cr_assert_eq(rp_state_check(&rp_virtio_blk_table, &err), 0, "%s", err.text);
}

Test(blk, several_queues)
{
    struct rp_error err = {0};

    destroy(&blk);
    cr_assert_eq(create(&blk, image, false, 4, &err), 0, "%s", err.text);
    start(&blk);
    pthread_mutex_lock(&board.lock);
    drv_up(&drv, &board, SLOT, 1ull << VIRTIO_BLK_F_MQ);
    pthread_mutex_unlock(&board.lock);
    cr_assert_eq(drv.nqueues, 4u);
    for (unsigned q = 0; q < 4; q++) {
        drv.heap = 0x200000 + 0x100000 * q;
        fill((uint8_t)q, 4096);
        cr_assert_eq(ask_on(q, VIRTIO_BLK_T_OUT, 8 * q, 4096), VIRTIO_BLK_S_OK);
        cr_assert(drv_pending(&drv, q + 1), "interrupt of queue %u", q);
    }
}

/* A request whose end lets another one go, as a guard's does with writes that overlap. */
struct chained {
    struct rp_disk_req first, second;
    struct rp_disk *disk;
    int ended;
};

static void on_second(struct rp_disk_req *r, int rc)
{
    struct chained *c = (struct chained *)(void *)((uint8_t *)r - offsetof(struct chained, second));
    c->ended += rc == 0;
}

static void on_first(struct rp_disk_req *r, int rc)
{
    struct chained *c = (struct chained *)(void *)r;
    c->ended += rc == 0;
    rp_disk_submit(c->disk, &c->second);
}

/* libnbd holds a lock while it says that a request is done: nothing may be submitted from there. */
static void submit_from_a_completion(const char *uri)
{
    struct rp_disk_config cfg = {.path = uri, .fd = -1};
    static _Alignas(4096) uint8_t page[4096];
    struct chained c = {.first = {.op = RP_DISK_READ, .len_bytes = 4096, .buf = page, .done = on_first},
                        .second = {.op = RP_DISK_READ, .len_bytes = 4096, .buf = page, .done = on_second}};
    struct rp_error err = {0};

    pthread_mutex_lock(&board.lock);
    cr_assert_eq(rp_disk_nbd_open(&cfg, board.env.loop, &c.disk, &err), 0, "%s", err.text);
    rp_disk_submit(c.disk, &c.first);
    rp_disk_kick(c.disk);
    rp_disk_drain(c.disk);
    cr_assert_eq(c.ended, 2);
    rp_disk_close(c.disk);
    pthread_mutex_unlock(&board.lock);
}

Test(blk, nbd_export, .timeout = 60)
{
    struct rp_error err = {0};
    char sock[96], uri[160];
    pid_t pid;

    if (access("/usr/bin/qemu-nbd", X_OK))
        cr_skip_test("qemu-nbd is not installed");
    destroy(&blk);
    snprintf(sock, sizeof(sock), "%s/nbd.sock", dir);
    snprintf(uri, sizeof(uri), "nbd+unix:///?socket=%s", sock);
    pid = fork();
    if (pid == 0) {
        execl("/usr/bin/qemu-nbd", "qemu-nbd", "-f", "raw", "-t", "-e", "2", "-k", sock, "--discard=unmap", image, (char *)NULL);
        _exit(127);
    }
    for (int i = 0; i < 500 && access(sock, F_OK); i++)
        usleep(10000);
    submit_from_a_completion(uri);
    pthread_mutex_lock(&board.lock);
    cr_assert_eq(create(&blk, uri, false, 1, &err), 0, "%s", err.text);
    blk.ops->start(blk.dev);
    drv_up(&drv, &board, SLOT, 0);
    pthread_mutex_unlock(&board.lock);
    exercise();
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    cr_assert_eq(ask(VIRTIO_BLK_T_IN, 0, 4096), VIRTIO_BLK_S_IOERR, "the server is gone");
    cr_assert_eq(ask(VIRTIO_BLK_T_IN, 0, 4096), VIRTIO_BLK_S_IOERR);
    unlink(sock);
}

static void count_done(struct rp_disk_req *r, int rc)
{
    cr_assert_eq(rc, 0, "%s", strerror(-rc));
    r->buf = NULL;
}

/* INV-5: zeroing where it has to be written costs one buffer, however many requests a guest has in flight. */
Test(raw, zeroing_many_ranges_at_once_takes_no_memory, .timeout = 60)
{
    enum { N = 200 };
    static struct rp_disk_req r[N];
    struct rp_disk_config cfg = {.path = NULL, .fd = -1, .shared = true};
    struct rp_disk *d;
    struct rp_error err = {0};
    struct mallinfo2 was, is;
    uint8_t byte = 0x5a;
    int fd;

    make_image();
    board_make(&board, 4u << 20);
    fd = open(image, O_WRONLY);
    cr_assert_eq(pwrite(fd, &byte, 1, DISK_BYTES - 1), 1);
    cfg.path = image;
    cr_assert_eq(rp_disk_open(&cfg, board.loop, &d, &err), 0, "%s", err.text);
    was = mallinfo2();
    for (unsigned i = 0; i < N; i++) {
        r[i] = (struct rp_disk_req){.op = RP_DISK_ZERO, .offset_bytes = i % 8 << 20, .len_bytes = 1u << 20, .done = count_done, .buf = &byte};
        rp_disk_submit(d, &r[i]);
    }
    is = mallinfo2();
    rp_disk_kick(d);
    rp_disk_drain(d);
    cr_assert_lt(is.uordblks + is.hblkhd, was.uordblks + was.hblkhd + (4u << 20));
    for (unsigned i = 0; i < N; i++)
        cr_assert_null(r[i].buf, "request %u is not done", i);
    rp_disk_close(d);
    close(fd);
    fd = open(image, O_RDONLY);
    cr_assert_eq(pread(fd, &byte, 1, DISK_BYTES - 1), 1);
    cr_assert_eq(byte, 0);
    close(fd);
    board_free(&board);
    unlink(image);
    rmdir(dir);
}
