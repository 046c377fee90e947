/* The sink that writes a file or a pipe: what was told to be committed is there, what failed never looks whole. */
#include "core/fault.h"
#include "core/sink.h"
#include "tests/unit/stream_builder.h"

#include <criterion/criterion.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

struct out {
    struct rp_sink *sink;
    struct rp_buf record;
    struct rp_error err;
    uint64_t committed;
};

static void on_committed(void *ctx, struct rp_sink *sink, uint64_t epoch)
{
    (void)sink;
    ((struct out *)ctx)->committed = epoch;
}

static void on_failed(void *ctx, struct rp_sink *sink, const struct rp_error *why)
{
    (void)ctx, (void)sink, (void)why;
}

static void out_start(struct out *o, int fd, bool sync)
{
    *o = (struct out){0};
    signal(SIGPIPE, SIG_IGN);
    cr_assert_geq(fd, 0);
    cr_assert_eq(rp_sink_fd_create(fd, sync, &o->sink, &o->err), 0);
    struct rp_sink_events ev = {.ctx = o, .committed = on_committed, .failed = on_failed};
    cr_assert_eq(o->sink->ops->start(o->sink, &ev, &o->err), 0);
}

static void out_finish(struct out *o)
{
    o->sink->ops->destroy(o->sink);
    rp_buf_fini(&o->record);
}

static int emit(struct out *o, int rc)
{
    cr_assert_eq(rc, 0);
    return o->sink->ops->emit(o->sink, &o->record, &o->err);
}

/* One epoch with `pages` raw pages in records of up to 256. */
static int epoch(struct out *o, uint64_t n, unsigned pages)
{
    static uint8_t data[256 * RP_PAGE_SIZE];
    struct rp_epoch_header h = sb_header(n, n - 1);
    struct rp_epoch_trailer t = {.number = n, .reason = RP_CUT_REQUEST};
    h.gfn_end = h.regions[0].pages = 1 << 20;
    h.nregions = 1;
    rp_buf_reset(&o->record);
    int rc = emit(o, rp_put_epoch(&o->record, 0, &h));
    for (unsigned left = pages; rc == 0 && left > 0;) {
        unsigned k = left < 256 ? left : 256;
        rp_buf_reset(&o->record);
        rp_record_open(&o->record, RP_REC_RAM, 0);
        rp_buf_u32(&o->record, 0);
        rp_buf_u32(&o->record, 1);
        rp_buf_u32(&o->record, 0);
        rp_buf_u32(&o->record, RP_CODEC_RAW << 8 | k << 16);
        rp_buf_put(&o->record, data, (size_t)k * RP_PAGE_SIZE);
        rc = emit(o, 0);
        left -= k;
        t.ram_records++;
        t.ram_pages++;
    }
    rp_buf_reset(&o->record);
    if (rc == 0)
        rc = emit(o, rp_put_epoch_end(&o->record, 0, &t));
    return rc == 0 ? o->sink->ops->flush(o->sink, n, &o->err) : rc;
}

/* Reads a stream to its end. Returns the records, or the error. */
static int read_all(int fd, struct rp_error *err)
{
    struct rp_stream_reader *r;
    struct rp_record rec;
    int rc, n = 0;
    cr_assert_eq(rp_stream_reader_create(fd, &r, err), 0);
    while ((rc = rp_stream_next(r, &rec, err)) > 0)
        n++;
    rp_stream_reader_destroy(r);
    return rc < 0 ? rc : n;
}

Test(sink_fd, a_file_that_reads_back)
{
    char path[] = "/tmp/reprise-sink-XXXXXX";
    int fd = mkstemp(path), again = open(path, O_RDONLY);
    struct out o;
    out_start(&o, fd, true);
    cr_assert_eq(epoch(&o, 1, 300), 0, "%s", o.err.text);
    cr_assert_eq(o.committed, 1);
    cr_assert_eq(epoch(&o, 2, 0), 0);
    cr_assert_eq(lseek(again, 0, SEEK_END), (off_t)rp_sink_fd_bytes(o.sink), "committed means written");
    cr_assert_eq(rp_sink_fd_finish(o.sink, &o.err), 0);
    lseek(again, 0, SEEK_SET);
    cr_assert_eq(read_all(again, &o.err), 8, "%s", o.err.text);
    out_finish(&o);
    close(again);
    unlink(path);
}

struct slow { int fd; int records; struct rp_error err; };

static void *slow_reader(void *arg)
{
    struct slow *s = arg;
    usleep(20000);
    s->records = read_all(s->fd, &s->err);
    return NULL;
}

/* A pipe takes 64 KiB at a time: every write is partial. */
Test(sink_fd, partial_writes_into_a_pipe)
{
    int fds[2];
    pthread_t t;
    struct out o;
    cr_assert_eq(pipe(fds), 0);
    struct slow s = {.fd = fds[0]};
    pthread_create(&t, NULL, slow_reader, &s);
    out_start(&o, fds[1], true);
    for (uint64_t n = 1; n <= 5; n++)
        cr_assert_eq(epoch(&o, n, 700), 0, "%s", o.err.text);
    cr_assert_eq(rp_sink_fd_finish(o.sink, &o.err), 0);
    out_finish(&o);
    pthread_join(t, NULL);
    cr_assert_eq(s.records, 2 + 5 * 5, "%s", s.err.text);
    close(fds[0]);
}

/* After a failure: nothing was committed, nothing more is written, finish does not claim success. */
static void broke(struct out *o, int rc, int code, const char *why)
{
    cr_assert_eq(rc, code, "%d %s", rc, o->err.text);
    cr_assert(strstr(o->err.text, why), "expected \"%s\", got \"%s\"", why, o->err.text);
    cr_assert_eq(o->committed, 0);
    uint64_t bytes = rp_sink_fd_bytes(o->sink);
    cr_assert_lt(rp_sink_fd_finish(o->sink, &o->err), 0);
    cr_assert_eq(rp_sink_fd_bytes(o->sink), bytes);
    out_finish(o);
}

Test(sink_fd, a_full_disk)
{
    struct out o;
    out_start(&o, open("/dev/full", O_WRONLY), false);
    broke(&o, epoch(&o, 1, 10), -ENOSPC, "writing the stream at byte 0: no space left");
}

Test(sink_fd, a_reader_that_has_gone)
{
    int fds[2];
    struct out o;
    cr_assert_eq(pipe(fds), 0);
    close(fds[0]);
    out_start(&o, fds[1], false);
    broke(&o, epoch(&o, 1, 10), -EPIPE, "the reader has gone");
}

Test(sink_fd, a_file_that_may_not_grow)
{
    char path[] = "/tmp/reprise-sink-XXXXXX";
    struct out o;
    signal(SIGXFSZ, SIG_IGN);
    out_start(&o, mkstemp(path), false);
    unlink(path);
    cr_assert_eq(setrlimit(RLIMIT_FSIZE, &(struct rlimit){1 << 20, 1 << 20}), 0);
    broke(&o, epoch(&o, 1, 1000), -EFBIG, "at byte 1048576: larger than a file may be");
}

static void *cancel_soon(void *arg)
{
    struct rp_sink *s = arg;
    usleep(20000);
    s->ops->cancel(s);
    return NULL;
}

Test(sink_fd, cancel_wakes_a_blocked_write)
{
    int fds[2];
    pthread_t t;
    struct out o;
    cr_assert_eq(pipe(fds), 0);
    out_start(&o, fds[1], false);
    pthread_create(&t, NULL, cancel_soon, o.sink);
    int rc = epoch(&o, 1, 1000);        /* nobody reads */
    pthread_join(t, NULL);
    broke(&o, rc, -EPIPE, "cancelled");
    close(fds[0]);
}

static void with_fault(const char *fault, const char *why, bool torn)
{
    char path[] = "/tmp/reprise-sink-XXXXXX";
    int fd = mkstemp(path), again = open(path, O_RDONLY);
    struct out o;
    unlink(path);
    setenv("RP_FAULT", fault, 1);
    rp_fault_reload();
    out_start(&o, fd, true);
    int rc = epoch(&o, 1, 700);
    cr_assert_eq(rc, -EIO, "%d %s", rc, o.err.text);
    cr_assert(strstr(o.err.text, why), "%s", o.err.text);
    cr_assert_eq(o.committed, 0);
    if (torn)
        cr_assert_lt(rp_sink_fd_finish(o.sink, &o.err), 0);
    out_finish(&o);
    struct rp_error err = {0};
    cr_assert_eq(read_all(again, &err), -EBADMSG, "what failed never reads as a whole stream");
    close(again);
}

Test(sink_fd, fault_sink_write) { with_fault("sink-write:1", "at byte 0: fault point", true); }
Test(sink_fd, fault_sink_write_in_the_middle) { with_fault("sink-write:2", "fault point", true); }
Test(sink_fd, fault_sink_write_at_the_end) { with_fault("sink-write:4", "fault point", true); }
Test(sink_fd, fault_sink_sync) { with_fault("sink-sync:1", "syncing the stream: fault point", false); }
