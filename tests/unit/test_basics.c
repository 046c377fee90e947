/* errors, bytes, page sets, digest, threads, queue, histogram, event log: the small things that everything stands on. */
#include "core/accept.h"
#include "core/bytes.h"
#include "core/digest.h"
#include "core/event.h"
#include "core/histogram.h"
#include "core/queue.h"
#include "core/thread.h"
#include "core/xxh3.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <xxhash.h>

Test(error, sets_wraps_and_accepts_null)
{
    struct rp_error err = {0};
    cr_assert_eq(rp_error_set(&err, ENOENT, "no %s", "file"), -ENOENT);
    cr_assert_eq(err.exit, RP_EXIT_FAILED);
    cr_assert_eq(rp_error_wrap(&err, "epoch %d", 7), -ENOENT);
    cr_assert_str_eq(err.text, "epoch 7: no file");
    cr_assert_eq(rp_error_exit(&err, RP_EXIT_DAMAGED, -EBADMSG, "x"), -EBADMSG);
    cr_assert_eq(err.exit, RP_EXIT_DAMAGED);
    cr_assert_eq(rp_error_set(NULL, -EIO, "x"), -EIO);
    cr_assert_lt(rp_error_wrap(NULL, "x"), 0);
    rp_error_clear(&err);
    cr_assert_eq(err.code, 0);
    rp_error_clear(NULL);
}

Test(error, long_sentences_are_cut_not_overrun)
{
    struct rp_error err = {0};
    char big[2048];
    memset(big, 'a', sizeof(big) - 1);
    big[sizeof(big) - 1] = '\0';
    (void)rp_error_set(&err, EIO, "%s", big);
    for (int i = 0; i < 5; i++)
        cr_assert_eq(rp_error_wrap(&err, "%s", big), -EIO);
    cr_assert_eq(strlen(err.text), sizeof(err.text) - 1);
}

Test(bytes, checked_arithmetic)
{
    uint64_t out = 42;
    cr_assert(rp_add(1, 2, &out));
    cr_assert_eq(out, 3);
    cr_assert_not(rp_add(UINT64_MAX, 1, &out));
    cr_assert_eq(out, 3, "unchanged on overflow");
    cr_assert(rp_mul(1ull << 31, 1ull << 32, &out));
    cr_assert_eq(out, 1ull << 63);
    cr_assert_not(rp_mul(1ull << 32, 1ull << 32, &out));
    cr_assert_eq(out, 1ull << 63);
}

Test(bytes, what_was_put_is_got)
{
    struct rp_buf b = {0};
    char s[8];
    rp_buf_u8(&b, 0xab);
    rp_buf_u16(&b, 0x1234);
    rp_buf_u32(&b, 0xdeadbeef);
    rp_buf_u64(&b, 0x0123456789abcdefull);
    rp_buf_str(&b, "seven77");
    cr_assert_not(b.failed);
    cr_assert_eq(b.data[1], 0x34, "little-endian");
    struct rp_reader r = rp_reader_of(b.data, b.len);
    cr_assert_eq(rp_get_u8(&r), 0xab);
    cr_assert_eq(rp_get_u16(&r), 0x1234);
    cr_assert_eq(rp_get_u32(&r), 0xdeadbeef);
    cr_assert_eq(rp_get_u64(&r), 0x0123456789abcdefull);
    struct rp_reader again = r;
    cr_assert_eq(rp_get_str(&again, s, 7), -EBADMSG, "no room for the NUL");
    cr_assert_eq(rp_get_str(&r, s, 8), 0);
    cr_assert_str_eq(s, "seven77");
    cr_assert_eq(rp_get_u8(&r), 0);
    cr_assert(r.failed, "a read beyond the end is remembered");
    rp_buf_fini(&b);
}

Test(bytes, a_string_with_a_nul_inside_is_refused)
{
    static const uint8_t in[] = {3, 0, 'a', 0, 'b'};
    char s[8];
    struct rp_reader r = rp_reader_of(in, sizeof(in));
    cr_assert_eq(rp_get_str(&r, s, sizeof(s)), -EBADMSG);
}

Test(bytes, a_failed_buffer_stays_failed_until_reset)
{
    struct rp_buf b = {0};
    cr_assert_lt(rp_buf_reserve(&b, SIZE_MAX), 0);
    rp_buf_u32(&b, 1);
    cr_assert(b.failed);
    cr_assert_eq(b.len, 0);
    rp_buf_reset(&b);
    rp_buf_u32(&b, 1);
    cr_assert_not(b.failed);
    rp_buf_fini(&b);
}

static const struct rp_ram_view layout = {.gfn_end = 300, .pages = 250, .nregions = 2, .regions = {{0, 150}, {200, 100}}};

Test(ram, contains_is_safe_against_hostile_numbers)
{
    cr_assert(rp_ram_contains(&layout, 0, 150));
    cr_assert_not(rp_ram_contains(&layout, 0, 151));
    cr_assert_not(rp_ram_contains(&layout, 150, 1));
    cr_assert(rp_ram_contains(&layout, 299, 1));
    cr_assert_not(rp_ram_contains(&layout, 299, UINT64_MAX));
    cr_assert_not(rp_ram_contains(&layout, UINT64_MAX, 2));
}

Test(ram, page_sets)
{
    struct rp_pageset a, b;
    cr_assert_eq(rp_pageset_init(&a, layout.gfn_end), 0);
    cr_assert_eq(rp_pageset_init(&b, layout.gfn_end), 0);
    rp_pageset_fill(&a, &layout);
    cr_assert_eq(rp_pageset_count(&a), 250);
    cr_assert(rp_pageset_test(&a, 149));
    cr_assert_not(rp_pageset_test(&a, 150), "the hole stays clear");
    cr_assert_eq(rp_pageset_next(&a, 150), 200);
    cr_assert_eq(rp_pageset_next(&a, 300), 300);
    rp_pageset_set_atomic(&b, 60, 10);
    rp_pageset_andnot(&a, &b);
    cr_assert_eq(rp_pageset_count(&a), 240);
    rp_pageset_take(&a, &b);
    cr_assert_eq(rp_pageset_count(&a), 250);
    cr_assert_eq(rp_pageset_count(&b), 0, "taken, so empty");
    cr_assert_eq(rp_pageset_next(&b, 0), 300);
    rp_pageset_fini(&a);
    rp_pageset_fini(&b);
}

Test(digest, zero_test_sees_every_byte)
{
    static uint8_t page[RP_PAGE_SIZE];
    cr_assert(rp_page_is_zero(page));
    for (unsigned i = 0; i < RP_PAGE_SIZE; i++) {
        page[i] = 1;
        cr_assert_not(rp_page_is_zero(page), "byte %u", i);
        page[i] = 0;
    }
}

Test(digest, incremental_equals_from_scratch)
{
    enum { N = 64 };
    unsigned seed = (unsigned)getpid();
    printf("seed %u\n", seed);
    struct rp_ram_view v = {.gfn_end = N, .pages = N - 8, .nregions = 2, .regions = {{0, 20}, {28, N - 28}}};
    v.base = mmap(NULL, N * RP_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct rp_digest d;
    cr_assert_eq(rp_digest_init(&d, N), 0);
    for (int round = 0; round < 500; round++) {
        uint64_t g = (uint64_t)rand_r(&seed) % N;
        if (!rp_ram_contains(&v, g, 1))
            continue;
        uint8_t *p = rp_ram_page(&v, g);
        memset(p, rand_r(&seed) % 3 ? rand_r(&seed) : 0, RP_PAGE_SIZE);
        struct rp_hash128 delta = {0, 0};
        if (round & 1) {
            rp_digest_update(&d, g, rp_page_hash(g, p));
        } else {
            rp_digest_update_delta(&d, g, rp_page_hash(g, p), &delta);
            rp_digest_add(&d, delta);
        }
        struct rp_hash128 all = rp_digest_of(&v);
        cr_assert(all.lo == d.sum.lo && all.hi == d.sum.hi, "round %d", round);
    }
    rp_digest_fini(&d);
    munmap(v.base, N * RP_PAGE_SIZE);
}

Test(digest, the_same_page_counts_differently_elsewhere)
{
    uint8_t page[RP_PAGE_SIZE] = {1};
    cr_assert_neq(rp_page_hash(1, page).lo, rp_page_hash(2, page).lo);
}

static void *blocked_signals(void *blocked)
{
    pthread_sigmask(SIG_BLOCK, NULL, blocked);
    return blocked;
}

Test(thread, has_no_signals_but_its_own_faults)
{
    pthread_t t;
    sigset_t mine, before, after;
    void *back;
    struct rp_error err = {0};
    pthread_sigmask(SIG_BLOCK, NULL, &before);
    cr_assert_eq(rp_thread_start(&t, "fifteen letters", blocked_signals, &mine, &err), 0, "%s", err.text);
    pthread_sigmask(SIG_BLOCK, NULL, &after);
    cr_assert_eq(pthread_join(t, &back), 0);
    cr_assert_eq(back, &mine);
    cr_assert(sigismember(&mine, SIGTERM) && sigismember(&mine, SIGINT) && !sigismember(&mine, SIGSEGV) && !sigismember(&mine, SIGBUS));
    cr_assert(!sigismember(&before, SIGTERM) && !sigismember(&after, SIGTERM), "the starter's own are as they were");
}

static void *pusher(void *arg)
{
    for (uintptr_t i = 1; i <= 10000; i++)
        cr_assert_eq(rp_queue_push(arg, (void *)i), 0);
    return NULL;
}

Test(queue, two_writers_lose_nothing_and_close_drains)
{
    struct rp_queue q;
    pthread_t t[2];
    cr_assert_eq(rp_queue_init(&q, 8), 0);
    for (int i = 0; i < 2; i++)
        pthread_create(&t[i], NULL, pusher, &q);
    uintptr_t sum = 0;
    for (int i = 0; i < 20000; i++)
        sum += (uintptr_t)rp_queue_pop(&q);
    cr_assert_eq(sum, 2u * 10000u * 10001u / 2u);
    for (int i = 0; i < 2; i++)
        pthread_join(t[i], NULL);
    cr_assert_eq(rp_queue_push(&q, &q), 0);
    rp_queue_close(&q);
    cr_assert_eq(rp_queue_push(&q, &q), -EPIPE);
    cr_assert_eq(rp_queue_pop(&q), (void *)&q, "what was in it still comes out");
    cr_assert_null(rp_queue_pop(&q));
    rp_queue_fini(&q);
}

static void *blocked_push(void *arg)
{
    return (void *)(intptr_t)rp_queue_push(arg, arg);
}

Test(queue, close_wakes_a_blocked_writer)
{
    struct rp_queue q;
    pthread_t t;
    void *rc;
    cr_assert_eq(rp_queue_init(&q, 1), 0);
    cr_assert_eq(rp_queue_push(&q, &q), 0);
    pthread_create(&t, NULL, blocked_push, &q);
    usleep(10000);
    rp_queue_close(&q);
    pthread_join(t, &rc);
    cr_assert_eq((intptr_t)rc, -EPIPE);
    rp_queue_fini(&q);
}

Test(histogram, quantiles_are_right_to_a_sixteenth)
{
    static struct rp_hist h;
    cr_assert_eq(rp_hist_quantile(&h, 0.5), 0);
    for (uint64_t v = 1; v <= 100000; v++)
        rp_hist_add(&h, v);
    uint64_t p50 = rp_hist_quantile(&h, 0.5), p99 = rp_hist_quantile(&h, 0.99);
    cr_assert(p50 >= 50000 && p50 <= 53200, "%lu", p50);
    cr_assert(p99 >= 99000 && p99 <= 100000, "%lu", p99);
    cr_assert_eq(rp_hist_quantile(&h, 1.0), 100000);
    uint64_t all = 0;
    for (unsigned k = RP_HIST_OCTAVE_FIRST; k <= RP_HIST_OCTAVE_LAST; k++)
        all += rp_hist_octave(&h, k);
    cr_assert_eq(all, atomic_load(&h.count));
    cr_assert_eq(rp_hist_octave(&h, 3), 15, "1 to 15");
    cr_assert_eq(rp_hist_octave(&h, 10), 1024, "1024 to 2047");
    rp_hist_add(&h, UINT64_MAX);
    cr_assert_eq(rp_hist_quantile(&h, 1.0), UINT64_MAX, "beyond the last bucket");
    rp_hist_reset(&h);
    cr_assert_eq(rp_hist_quantile(&h, 0.5), 0);
}

static void count_event(void *ctx, const struct rp_event *e)
{
    *(unsigned *)ctx += e->name[0] == 'R';
}

Test(event, ring_keeps_the_newest_and_subscribers_see_all)
{
    struct rp_events *ev;
    struct rp_event out[8];
    unsigned seen = 0;
    cr_assert_eq(rp_events_create(4, &ev), 0);
    int id = rp_events_subscribe(ev, count_event, &seen);
    cr_assert_gt(id, 0);
    for (unsigned i = 0; i < 10; i++)
        rp_events_emit(ev, i, "RESUME", "{\"n\": %u}", i);
    rp_events_unsubscribe(ev, id);
    rp_events_emit(ev, 10, "RESUME", "{}");
    cr_assert_eq(seen, 10);
    cr_assert_eq(rp_events_copy(ev, out, 8), 4);
    cr_assert_eq(out[0].epoch, 7);
    cr_assert_eq(out[3].epoch, 10);
    cr_assert_str_eq(out[0].data, "{\"n\": 7}");
    rp_events_emit(NULL, 0, "X", "{}");
    rp_events_destroy(ev);
}

Test(event, INV7_history_travels_and_stands_before_what_happened_here)
{
    struct rp_events *a, *b;
    struct rp_sections s = {0};
    struct rp_section sec;
    struct rp_event out[64];
    struct rp_error err = {0};
    cr_assert_eq(rp_events_create(64, &a), 0);
    cr_assert_eq(rp_events_create(6, &b), 0);
    for (unsigned i = 0; i < 10; i++)
        rp_events_emit(a, i, "THERE", "{}");
    rp_events_emit(b, 100, "HERE", "{}");
    rp_events_emit(b, 101, "HERE", "{}");
    cr_assert_eq(rp_events_save(a, &s, NULL), 0);
    cr_assert(rp_sections_find(&s, "history", 0, &sec));
    cr_assert_eq(rp_events_load(b, &sec, &err), 0, "%s", err.text);
    cr_assert_eq(rp_events_copy(b, out, 64), 6);
    cr_assert_eq(out[0].epoch, 6, "the oldest of those that do not fit go first");
    cr_assert_eq(out[3].epoch, 9);
    cr_assert_eq(out[4].epoch, 100);
    cr_assert_eq(out[5].epoch, 101);
    cr_assert_eq(rp_events_load(b, &sec, &err), 0, "%s", err.text);
    cr_assert_eq(rp_events_copy(b, out, 64), 6);
    cr_assert(out[0].epoch == 6 && out[3].epoch == 9 && out[5].epoch == 101, "what came back is here already");
    sec.len -= 1;
    cr_assert_eq(rp_events_load(b, &sec, &err), -EBADMSG);
    cr_assert_eq(rp_events_copy(b, out, 64), 6, "a damaged history changes nothing");
    rp_sections_fini(&s);
    rp_events_destroy(a);
    rp_events_destroy(b);
}

/* What is on the wire must not depend on the CPU: both builds give the public library's values. */
Test(xxh3, both_builds_agree_with_the_library)
{
    static uint8_t bytes[9000];
    unsigned seed = 4711;
    for (size_t i = 0; i < sizeof(bytes); i++)
        bytes[i] = (uint8_t)rand_r(&seed);
    for (size_t len = 0; len <= 8192; len = len < 300 ? len + 1 : len * 9 / 8) {
        const uint8_t *p = bytes + len % 7;
        XXH128_hash_t h = XXH3_128bits_withSeed(p, len, len);
        cr_assert_eq(rp_xxh3_64(p, len, len), XXH3_64bits_withSeed(p, len, len), "%zu bytes", len);
        cr_assert_eq(rp_xxh3_128(p, len, len).lo, h.low64, "%zu bytes", len);
        cr_assert_eq(rp_xxh3_128(p, len, len).hi, h.high64, "%zu bytes", len);
        if (!__builtin_cpu_supports("avx2"))
            continue;
        cr_assert_eq(rp_xxh3_64_avx2(p, len, len), XXH3_64bits_withSeed(p, len, len), "%zu bytes", len);
        cr_assert_eq(rp_xxh3_128_avx2(p, len, len).lo, h.low64, "%zu bytes", len);
    }
    cr_assert_eq(rp_xxh3_64(bytes, 16, 0), XXH3_64bits(bytes, 16));
    uint64_t blocks[RP_XXH3_BLOCKS];
    rp_xxh3_blocks(bytes, 3, blocks);
    for (unsigned i = 0; i < RP_XXH3_BLOCKS; i++)
        cr_assert_eq(blocks[i], XXH3_64bits_withSeed(bytes + RP_XXH3_BLOCK * i, RP_XXH3_BLOCK, 3));
}

/* Out of descriptors, a connection is turned away and the listener is quiet again; later ones are taken. */
Test(accept, a_full_process_turns_away)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};     /* abstract, of this process's own */
    int l = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), clients[2], fd;
    struct rlimit had, none;
    char byte;
    snprintf(a.sun_path + 1, sizeof(a.sun_path) - 1, "reprise-accept-%d", getpid());
    cr_assert_eq(bind(l, (struct sockaddr *)&a, sizeof(a)), 0);
    cr_assert_eq(listen(l, 4), 0);
    cr_assert_eq(rp_accept(l), -EAGAIN);
    for (unsigned i = 0; i < 2; i++)
        clients[i] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    cr_assert_eq(connect(clients[0], (struct sockaddr *)&a, sizeof(a)), 0);
    cr_assert_eq(getrlimit(RLIMIT_NOFILE, &had), 0);
    fd = dup(l);            /* the lowest that is free: all below are in use */
    close(fd);
    none = (struct rlimit){.rlim_cur = (rlim_t)fd, .rlim_max = had.rlim_max};
    cr_assert_eq(setrlimit(RLIMIT_NOFILE, &none), 0);
    fd = rp_accept(l);
    cr_assert_eq(setrlimit(RLIMIT_NOFILE, &had), 0);
    cr_assert_eq(fd, -EMFILE);
    cr_assert_eq(recv(clients[0], &byte, 1, 0), 0);
    cr_assert_eq(poll(&(struct pollfd){.fd = l, .events = POLLIN}, 1, 0), 0);
    cr_assert_eq(connect(clients[1], (struct sockaddr *)&a, sizeof(a)), 0);
    cr_assert_geq(fd = rp_accept(l), 0);
    close(fd);
    close(l);
    close(clients[0]);
    close(clients[1]);
}
