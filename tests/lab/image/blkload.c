/*
 * blkload: random or sequential I/O on a block device, and what it costs; small enough for an initramfs.
 *
 *   blkload [-w] [-s] [-b BYTES] [-d DEPTH] [-t SECONDS] DEVICE
 *
 * DEPTH processes each keep one O_DIRECT request of BYTES in flight at aligned offsets: random ones, or with -s
 * consecutive ones; reads, or with -w writes. Prints one line:
 *   blkload: read random block=4096 depth=4 iops=N MBps=N p50us=N p99us=N
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MAX_DEPTH = 64, BUCKET_US = 10, BUCKETS = 20000 };

struct load {
    bool write;
    bool sequential;
    size_t block_bytes;
    unsigned depth;
    unsigned seconds;
    const char *device;
    uint64_t device_bytes;
};

/* Shared by the processes: requests by latency, the last bucket for everything beyond. */
struct result {
    atomic_ullong done;
    atomic_ullong failed;
    atomic_ullong next_block;
    atomic_ullong buckets[BUCKETS];
};

static uint64_t now_us(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

/* xorshift64: good enough to scatter offsets, and the same everywhere. */
static uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static void work(const struct load *load, struct result *result, unsigned self)
{
    uint64_t random = 0x9e3779b97f4a7c15u * (self + 1), end = now_us() + load->seconds * 1000000ull;
    uint64_t blocks = load->device_bytes / load->block_bytes, start, took;
    int fd = open(load->device, (load->write ? O_WRONLY : O_RDONLY) | O_DIRECT);
    void *buffer = NULL;
    ssize_t n;

    if (fd < 0 || posix_memalign(&buffer, 4096, load->block_bytes)) {
        perror(load->device);
        _exit(1);
    }
    memset(buffer, (int)self, load->block_bytes);
    while ((start = now_us()) < end) {
        uint64_t block = load->sequential ? atomic_fetch_add(&result->next_block, 1) : next_random(&random);
        off_t offset = (off_t)(block % blocks * load->block_bytes);

        n = load->write ? pwrite(fd, buffer, load->block_bytes, offset) : pread(fd, buffer, load->block_bytes, offset);
        took = (now_us() - start) / BUCKET_US;
        atomic_fetch_add(n == (ssize_t)load->block_bytes ? &result->done : &result->failed, 1);
        atomic_fetch_add(&result->buckets[took < BUCKETS ? took : BUCKETS - 1], 1);
    }
    _exit(0);
}

static unsigned long long percentile_us(struct result *result, double share)
{
    unsigned long long total = result->done + result->failed, seen = 0;

    for (unsigned i = 0; i < BUCKETS; i++) {
        seen += result->buckets[i];
        if (total && (double)seen >= share * (double)total)
            return (unsigned long long)(i + 1) * BUCKET_US;
    }
    return 0;
}

static int measure(const struct load *load)
{
    struct result *result =
        mmap(NULL, sizeof(*result), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    uint64_t start = now_us();
    double seconds;

    if (result == MAP_FAILED) {
        perror("mmap");
        return 1;
    }
    for (unsigned i = 0; i < load->depth; i++)
        if (fork() == 0)
            work(load, result, i);
    while (wait(NULL) > 0)
        ;
    seconds = (double)(now_us() - start) / 1e6;
    printf("blkload: %s %s block=%zu depth=%u iops=%.0f MBps=%.2f p50us=%llu p99us=%llu failed=%llu\n",
           load->write ? "write" : "read", load->sequential ? "sequential" : "random", load->block_bytes,
           load->depth, (double)result->done / seconds,
           (double)result->done * (double)load->block_bytes / seconds / 1e6, percentile_us(result, 0.5),
           percentile_us(result, 0.99), (unsigned long long)result->failed);
    return result->done && !result->failed ? 0 : 1;
}

int main(int argc, char **argv)
{
    struct load load = {.block_bytes = 4096, .depth = 1, .seconds = 5};
    int option, fd;

    while ((option = getopt(argc, argv, "wsb:d:t:")) != -1) {
        switch (option) {
        case 'w': load.write = true; break;
        case 's': load.sequential = true; break;
        case 'b': load.block_bytes = strtoul(optarg, NULL, 0); break;
        case 'd': load.depth = (unsigned)strtoul(optarg, NULL, 0); break;
        case 't': load.seconds = (unsigned)strtoul(optarg, NULL, 0); break;
        default: optind = argc + 1;
        }
    }
    if (optind != argc - 1 || !load.depth || load.depth > MAX_DEPTH || !load.block_bytes || load.block_bytes % 512) {
        fprintf(stderr, "usage: blkload [-w] [-s] [-b BYTES] [-d DEPTH] [-t SECONDS] DEVICE\n");
        return 2;
    }
    load.device = argv[optind];
    fd = open(load.device, O_RDONLY);
    if (fd < 0 || ioctl(fd, BLKGETSIZE64, &load.device_bytes) || load.device_bytes < load.block_bytes) {
        perror(load.device);
        return 1;
    }
    close(fd);
    return measure(&load);
}
