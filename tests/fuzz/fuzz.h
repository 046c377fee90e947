/*
 * fuzz.h - an input as a row of choices. Beyond its end every choice is 0, so that each prefix of an input is an input.
 * A property that does not hold calls fz_fail, which libFuzzer reports like a crash.
 */
#ifndef RP_TESTS_FUZZ_H
#define RP_TESTS_FUZZ_H

#include "core/bytes.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

struct fz {
    const uint8_t *p;
    size_t left;
};

static inline const uint8_t *fz_bytes(struct fz *f, size_t n, size_t *got)
{
    const uint8_t *p = f->p;
    *got = n < f->left ? n : f->left;
    f->p += *got;
    f->left -= *got;
    return p;
}

static inline uint64_t fz_u(struct fz *f, unsigned bytes)
{
    uint64_t v = 0;
    size_t n;
    const uint8_t *p = fz_bytes(f, bytes, &n);
    for (size_t i = 0; i < n; i++)
        v |= (uint64_t)p[i] << (8 * i);
    return v;
}

static inline uint8_t fz_u8(struct fz *f) { return (uint8_t)fz_u(f, 1); }
static inline uint16_t fz_u16(struct fz *f) { return (uint16_t)fz_u(f, 2); }
static inline uint32_t fz_u32(struct fz *f) { return (uint32_t)fz_u(f, 4); }
static inline uint64_t fz_u64(struct fz *f) { return fz_u(f, 8); }
/* 0 … n - 1 */
static inline uint32_t fz_below(struct fz *f, uint32_t n) { return fz_u16(f) % n; }

__attribute__((noreturn)) static inline void fz_fail(const char *file, int line, const char *what)
{
    fprintf(stderr, "%s:%d: does not hold: %s\n", file, line, what);
    abort();
}
#define FZ_HOLDS(what) do { if (!(what)) fz_fail(__FILE__, __LINE__, #what); } while (0)

/* A folder in memory, emptied and removed when this process has ended, however it ends. `out`: 64 bytes. */
static inline void fz_folder(char *out)
{
    struct stat st;
    int end[2];
    snprintf(out, 64, "%s/reprise-fuzz-XXXXXX", stat("/dev/shm", &st) == 0 ? "/dev/shm" : "/tmp");
    FZ_HOLDS(mkdtemp(out) != NULL && pipe(end) == 0);
    pid_t child = fork();
    FZ_HOLDS(child >= 0);
    if (child == 0) {
        char byte;
        close(end[1]);
        while (read(end[0], &byte, 1) > 0)
            continue;
        execl("/bin/rm", "rm", "-rf", "--", out, (char *)NULL);
        _exit(1);
    }
    close(end[0]);      /* end[1] stays open as long as this process lives */
}

#endif
