/*
 * criterion.h - as much of Criterion as our tests use, for the thread sanitizer: Criterion's own runner crashes under it before
 * the first test. `make SAN=thread` puts this header before the real one. Each test runs in a child; a report of the sanitizer
 * is a failure. Arguments: names of tests, as SUITE::NAME or part of it; -x options are ignored.
 */
#ifndef RP_TESTS_TSAN_CRITERION_H
#define RP_TESTS_TSAN_CRITERION_H

#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

struct tsan_options {
    void (*init)(void), (*fini)(void);
    double timeout;
    bool disabled;
};
struct tsan_test {
    const char *suite, *name;
    void (*run)(void);
    struct tsan_options options;
    struct tsan_test *next;
};
struct tsan_suite {
    const char *name;
    struct tsan_options options;
    struct tsan_suite *next;
};
static struct tsan_test *tsan_tests;
static struct tsan_suite *tsan_suites;

#define TSAN_TEXT(x) #x
#define Test(suite_, name_, ...)                                                                                        \
    static void suite_##_##name_##_run(void);                                                                           \
    static struct tsan_test suite_##_##name_ = {                                                                        \
        .suite = #suite_, .name = #name_, .run = suite_##_##name_##_run, .options = {__VA_ARGS__}};                     \
    __attribute__((constructor)) static void suite_##_##name_##_add(void)                                               \
    {                                                                                                                   \
        suite_##_##name_.next = tsan_tests;                                                                             \
        tsan_tests = &suite_##_##name_;                                                                                 \
    }                                                                                                                   \
    static void suite_##_##name_##_run(void)
#define TestSuite(name_, ...)                                                                                           \
    static struct tsan_suite name_##_suite = {.name = #name_, .options = {__VA_ARGS__}};                                \
    __attribute__((constructor)) static void name_##_suite_add(void)                                                    \
    {                                                                                                                   \
        name_##_suite.next = tsan_suites;                                                                               \
        tsan_suites = &name_##_suite;                                                                                   \
    }

__attribute__((format(printf, 1, 2))) static inline void tsan_say(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
}
#define TSAN_FAIL(what, ...)                                                                                            \
    do {                                                                                                                \
        fprintf(stderr, "%s:%d: %s ", __FILE__, __LINE__, what);                                                        \
        tsan_say(" " __VA_ARGS__);                                                                                      \
        fputc('\n', stderr);                                                                                            \
        abort();                                                                                                        \
    } while (0)
#define cr_assert(c, ...) do { if (!(c)) TSAN_FAIL("not " #c, ##__VA_ARGS__); } while (0)
#define cr_assert_not(c, ...) do { if (c) TSAN_FAIL(#c, ##__VA_ARGS__); } while (0)
#define cr_assert_fail(...) TSAN_FAIL("failed", ##__VA_ARGS__)
#define cr_fatal(...) TSAN_FAIL("failed", ##__VA_ARGS__)
#define cr_assert_eq(a, b, ...) cr_assert((a) == (b), ##__VA_ARGS__)
#define cr_assert_neq(a, b, ...) cr_assert((a) != (b), ##__VA_ARGS__)
#define cr_assert_lt(a, b, ...) cr_assert((a) < (b), ##__VA_ARGS__)
#define cr_assert_leq(a, b, ...) cr_assert((a) <= (b), ##__VA_ARGS__)
#define cr_assert_gt(a, b, ...) cr_assert((a) > (b), ##__VA_ARGS__)
#define cr_assert_geq(a, b, ...) cr_assert((a) >= (b), ##__VA_ARGS__)
#define cr_assert_null(a, ...) cr_assert((a) == NULL, ##__VA_ARGS__)
#define cr_assert_not_null(a, ...) cr_assert((a) != NULL, ##__VA_ARGS__)
#define cr_assert_str_eq(a, b, ...) cr_assert(strcmp(a, b) == 0, ##__VA_ARGS__)
#define cr_skip_test(...) do { tsan_say("skipped: " __VA_ARGS__); fputc('\n', stderr); exit(0); } while (0)
#define cr_log_info(...) tsan_say(__VA_ARGS__)
#define cr_log_warn(...) tsan_say(__VA_ARGS__)

static inline bool tsan_wanted(const struct tsan_test *t, int argc, char **argv)
{
    char full[256];
    bool named = false;
    snprintf(full, sizeof(full), "%s::%s", t->suite, t->name);
    for (int i = 1; i < argc; i++) {
        if (argv[i][0] == '-')
            continue;
        named = true;
        if (strstr(full, argv[i]))
            return true;
    }
    return !named;
}

static inline void tsan_run(const struct tsan_test *t)
{
    const struct tsan_options *suite = NULL;
    for (const struct tsan_suite *s = tsan_suites; s; s = s->next)
        if (strcmp(s->name, t->suite) == 0)
            suite = &s->options;
    void (*init)(void) = t->options.init ? t->options.init : suite ? suite->init : NULL;
    void (*fini)(void) = t->options.fini ? t->options.fini : suite ? suite->fini : NULL;
    double timeout = t->options.timeout > 0 ? t->options.timeout : suite && suite->timeout > 0 ? suite->timeout : 60;
    alarm((unsigned)(timeout * 10));    /* the sanitizer is slow */
    if (init)
        init();
    t->run();
    if (fini)
        fini();
    exit(0);
}

int main(int argc, char **argv)
{
    unsigned run = 0, failed = 0;
    for (const struct tsan_test *t = tsan_tests; t; t = t->next) {
        int status = -1;
        if (!tsan_wanted(t, argc, argv))
            continue;
        fprintf(stderr, "[RUN ] %s::%s\n", t->suite, t->name);
        pid_t pid = fork();
        if (pid == 0)
            tsan_run(t);
        bool good = pid > 0 && waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0;
        fprintf(stderr, "[%s] %s::%s\n", good ? "PASS" : "FAIL", t->suite, t->name);
        run++;
        failed += !good;
    }
    fprintf(stderr, "Synthesis: Tested: %u | Passing: %u | Failing: %u\n", run, run - failed, failed);
    return failed != 0;
}

#endif
