/*
 * bench-engine: what the engine's parts cost on this machine; only `machine` needs KVM. Figures swing with the machine's load: compare
 * within one run.
 *
 *   bench-engine [pages] [encode] [cow] [link] [resync] [machine] [KEY=VALUE …]    all unless named
 */
#include "tests/bench/bench.h"

#include "core/clock.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

const char *bench_text(const struct bench_words *w, const char *key, const char *otherwise)
{
    size_t n = strlen(key);
    for (int i = 1; i < w->argc; i++)
        if (strncmp(w->argv[i], key, n) == 0 && w->argv[i][n] == '=')
            return w->argv[i] + n + 1;
    return otherwise;
}

double bench_number(const struct bench_words *w, const char *key, double otherwise)
{
    const char *text = bench_text(w, key, NULL);
    return text ? strtod(text, NULL) : otherwise;
}

double bench_best_ns(unsigned rounds, void (*fn)(void *ctx), void *ctx)
{
    uint64_t best = UINT64_MAX;
    for (unsigned i = 0; i < rounds; i++) {
        uint64_t t0 = rp_clock_ns();
        fn(ctx);
        uint64_t ns = rp_clock_ns() - t0;
        best = ns < best ? ns : best;
    }
    return (double)best;
}

void bench_die(const char *what, const struct rp_error *err)
{
    fprintf(stderr, "bench-engine: %s: %s\n", what, err->text);
    exit(1);
}

pid_t bench_child(void (*run)(const void *ctx, int ready_fd), const void *ctx)
{
    int fds[2];
    char c;
    if (pipe(fds) < 0)
        abort();
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0)
        run(ctx, fds[1]);
    close(fds[1]);
    if (pid < 0 || read(fds[0], &c, 1) != 1)
        exit(1);
    close(fds[0]);
    return pid;
}

void bench_title(const char *title)
{
    printf("\n%s\n", title);
}

void bench_row(const char *what, double figure, const char *unit)
{
    printf("  %-58s %10.*f %s\n", what, figure < 10 ? 2 : figure < 1000 ? 1 : 0, figure, unit);
}

int main(int argc, char **argv)
{
    static const struct { const char *name; int (*run)(const struct bench_words *w); } parts[] = {
        {"pages", bench_pages}, {"encode", bench_encode}, {"cow", bench_cow}, {"link", bench_link}, {"resync", bench_resync}, {"machine", bench_machine}};
    struct bench_words w = {argc, argv};
    bool named = false;
    signal(SIGPIPE, SIG_IGN);
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (int i = 1; i < argc; i++)
        named |= !strchr(argv[i], '=');
    for (size_t p = 0; p < sizeof(parts) / sizeof(parts[0]); p++) {
        bool wanted = !named;
        for (int i = 1; i < argc; i++)
            wanted |= strcmp(argv[i], parts[p].name) == 0;
        if (wanted && parts[p].run(&w))
            return 1;
    }
    return 0;
}
