/*
 * criterion.h - the part of Criterion that our tests use, for the ThreadSanitizer build: Criterion's own process isolation
 * maps memory where ThreadSanitizer allows none. Each test runs in a child process; TAP goes to standard output.
 * A program is one source file, so everything is in this header, main included.
 *
 *     program [PART OF SUITE::NAME]...     exit code 1: a test failed
 */
#ifndef RP_TESTS_PLAIN_CRITERION_H
#define RP_TESTS_PLAIN_CRITERION_H

#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PLAIN_SKIPPED 77
#define PLAIN_SLOWER 20         /* what ThreadSanitizer and a busy machine cost: a test's time limit is multiplied by it */
#define PLAIN_LONGEST_S 400     /* so that a program's other tests are heard of */
#define PLAIN_TIMEOUT_S 60.0

struct plain_options {
    void (*init)(void), (*fini)(void);
    double timeout;             /* seconds; 0: PLAIN_TIMEOUT_S */
};

struct plain_test {
    const char *suite, *name;
    void (*fn)(void);           /* NULL: the options of a whole suite */
    struct plain_options options;
    struct plain_test *next;
};

static struct plain_test *plain_tests, **plain_end = &plain_tests;

static inline void plain_add(struct plain_test *t)
{
    *plain_end = t;
    plain_end = &t->next;
}

__attribute__((noreturn, format(printf, 4, 5))) static inline void plain_end_test(int code, const char *file, int line, const char *fmt, ...)
{
    va_list ap;
    printf("# %s:%d: ", file, line);
    va_start(ap, fmt);
    vprintf(fmt, ap);
    va_end(ap);
    putchar('\n');
    fflush(stdout);
    _exit(code);
}

#define PLAIN_FAIL(what, ...) do { \
        char plain_text[900]; \
        snprintf(plain_text, sizeof(plain_text), " " __VA_ARGS__); \
        plain_end_test(1, __FILE__, __LINE__, "does not hold: %s%s", what, plain_text); \
    } while (0)
#define PLAIN_HOLDS(what, holds, ...) do { if (!(holds)) PLAIN_FAIL(what, __VA_ARGS__); } while (0)

#define cr_assert(c, ...) PLAIN_HOLDS(#c, c, __VA_ARGS__)
#define cr_assert_not(c, ...) PLAIN_HOLDS("not " #c, !(c), __VA_ARGS__)
#define cr_assert_eq(a, b, ...) PLAIN_HOLDS(#a " == " #b, (a) == (b), __VA_ARGS__)
#define cr_assert_neq(a, b, ...) PLAIN_HOLDS(#a " != " #b, (a) != (b), __VA_ARGS__)
#define cr_assert_lt(a, b, ...) PLAIN_HOLDS(#a " < " #b, (a) < (b), __VA_ARGS__)
#define cr_assert_leq(a, b, ...) PLAIN_HOLDS(#a " <= " #b, (a) <= (b), __VA_ARGS__)
#define cr_assert_gt(a, b, ...) PLAIN_HOLDS(#a " > " #b, (a) > (b), __VA_ARGS__)
#define cr_assert_geq(a, b, ...) PLAIN_HOLDS(#a " >= " #b, (a) >= (b), __VA_ARGS__)
#define cr_assert_null(p, ...) PLAIN_HOLDS(#p " is NULL", (p) == NULL, __VA_ARGS__)
#define cr_assert_not_null(p, ...) PLAIN_HOLDS(#p " is not NULL", (p) != NULL, __VA_ARGS__)
#define cr_assert_str_eq(a, b, ...) PLAIN_HOLDS(#a " is the text " #b, strcmp(a, b) == 0, __VA_ARGS__)
#define cr_assert_str_neq(a, b, ...) PLAIN_HOLDS(#a " is not the text " #b, strcmp(a, b) != 0, __VA_ARGS__)
#define cr_assert_arr_eq(a, b, n, ...) PLAIN_HOLDS(#a " equals " #b, memcmp(a, b, n) == 0, __VA_ARGS__)
#define cr_assert_fail(...) PLAIN_FAIL("", __VA_ARGS__)
#define cr_skip_test(...) plain_end_test(PLAIN_SKIPPED, __FILE__, __LINE__, "skipped: " __VA_ARGS__)
#define cr_log_info(...) printf("# " __VA_ARGS__)
#define cr_log_warn(...) printf("# " __VA_ARGS__)

#define PLAIN_ADD(id, s, n, f, ...) \
    static struct plain_test plain_##id = {.suite = #s, .name = #n, .fn = (f), .options = {__VA_ARGS__}}; \
    __attribute__((constructor)) static void plain_add_##id(void) { plain_add(&plain_##id); } \
    struct plain_semicolon
#define Test(s, n, ...) \
    static void plain_run_##s##_##n(void); \
    PLAIN_ADD(s##_##n, s, n, plain_run_##s##_##n, __VA_ARGS__); \
    static void plain_run_##s##_##n(void)
#define TestSuite(s, ...) PLAIN_ADD(suite_##s, s, *, NULL, __VA_ARGS__)

static inline void plain_child(const struct plain_test *t, const struct plain_options *o)
{
    if (o->init)
        o->init();
    t->fn();
    if (o->fini)
        o->fini();
    fflush(stdout);
    exit(0);
}

/* Waits for the child, at most `seconds`; -1: it took too long and was ended. */
static inline int plain_wait(pid_t child, double seconds)
{
    int status;
    for (double waited = 0; waited < seconds; waited += 0.01) {
        if (waitpid(child, &status, WNOHANG) == child)
            return status;
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    }
    kill(child, SIGKILL);
    waitpid(child, &status, 0);
    return -1;
}

/* 0 passed or skipped, 1 failed */
static inline int plain_run(const struct plain_test *t, const struct plain_options *suite)
{
    struct plain_options o = t->options;
    o.init = o.init ? o.init : suite->init;
    o.fini = o.fini ? o.fini : suite->fini;
    o.timeout = o.timeout > 0 ? o.timeout : suite->timeout > 0 ? suite->timeout : PLAIN_TIMEOUT_S;
    fflush(stdout);
    pid_t child = fork();
    if (child == 0)
        plain_child(t, &o);
    double patience_s = o.timeout * PLAIN_SLOWER < PLAIN_LONGEST_S ? o.timeout * PLAIN_SLOWER : PLAIN_LONGEST_S;
    int status = plain_wait(child, patience_s);
    bool skipped = status >= 0 && WIFEXITED(status) && WEXITSTATUS(status) == PLAIN_SKIPPED, passed = status == 0;
    printf("%sok - %s::%s %s", passed || skipped ? "" : "not ", t->suite, t->name, skipped ? " # SKIP" : "");
    if (status < 0)
        printf(" (no end after %.0f s)", patience_s);
    else if (!passed && !skipped)
        printf(WIFSIGNALED(status) ? " (signal %d)" : " (exit code %d)", WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
    putchar('\n');
    return !passed && !skipped;
}

static inline bool plain_wanted(const struct plain_test *t, int argc, char **argv)
{
    char name[256];
    bool wanted = true;
    snprintf(name, sizeof(name), "%s::%s", t->suite, t->name);
    for (int i = 1; i < argc; i++)
        if (argv[i][0] != '-') {        /* Criterion's options mean nothing here */
            wanted = false;
            if (strstr(name, argv[i]))
                return true;
        }
    return wanted;
}

int main(int argc, char **argv)
{
    static const struct plain_options none;
    int failed = 0;
    for (const struct plain_test *t = plain_tests; t; t = t->next) {
        const struct plain_options *suite = &none;
        if (!t->fn || !plain_wanted(t, argc, argv))
            continue;
        for (const struct plain_test *s = plain_tests; s; s = s->next)
            if (!s->fn && strcmp(s->suite, t->suite) == 0)
                suite = &s->options;
        failed |= plain_run(t, suite);
    }
    return failed;
}

#endif
