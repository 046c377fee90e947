/*
 * Records of the file lease: bytes that some other host wrote. A record is taken whole or is "damaged", never more; what we write
 * reads back the same; a directory of hostile files never gives the lease to two.
 */
#include "replicator/lease_file.c"     /* its parser is its own */
#include "tests/fuzz/fuzz.h"

static char directory[64];
static struct rp_lease *lease;

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc, (void)argv;
    fz_folder(directory);
    if (rp_lease_file_open(directory, "vm", &lease, NULL) < 0)
        return -1;
    snprintf(lease->vm_name, sizeof(lease->vm_name), "vm");
    snprintf(lease->owner, sizeof(lease->owner), "fuzz");
    lease->ttl_ms = 2000;
    return 0;
}

static void reads_back(struct fz *f)
{
    struct record r = {.state = STATE_PENDING + fz_u8(f) % 3, .term = fz_u64(f), .seq = fz_u64(f), .ttl_ms = 1 + fz_below(f, 60000)}, again;
    char bytes[RECORD_BYTES], *texts[] = {r.owner, r.host, r.boot};
    for (unsigned i = 0; i < 3; i++) {
        unsigned n = 1 + fz_u8(f) % 63;
        for (unsigned k = 0; k < n; k++)
            texts[i][k] = (char)('!' + fz_u8(f) % 94);
    }
    format_record(&r, bytes);
    parse_record(bytes, &again);
    FZ_HOLDS(again.state == r.state && again.term == r.term && again.seq == r.seq && again.ttl_ms == r.ttl_ms);
    FZ_HOLDS(strcmp(again.owner, r.owner) == 0 && strcmp(again.host, r.host) == 0 && strcmp(again.boot, r.boot) == 0);
}

static void put_sum(char bytes[RECORD_BYTES])
{
    char sum[32];
    snprintf(sum, sizeof(sum), "\nsum %016llx\n", (unsigned long long)XXH3_64bits(bytes, RECORD_BYTES - 22));
    memcpy(bytes + RECORD_BYTES - 22, sum, 22);
}

static void in_a_directory(const char bytes[RECORD_BYTES], struct fz *f)
{
    char path[128];
    struct rp_lease_holder who = {0};
    struct rp_error err = {0};
    unsigned long long term = 1 + fz_u8(f) % 3;
    snprintf(path, sizeof(path), "%s/vm.lease.%020llu", directory, term);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    FZ_HOLDS(fd >= 0 && write(fd, bytes, RECORD_BYTES - fz_u8(f) % 2) > 0);
    close(fd);
    int rc = lease->ops->query(lease, &who, &err);
    FZ_HOLDS(rc == 0 || err.text[0]);
    if (rc == 0)
        FZ_HOLDS(who.term >= term && memchr(who.owner, 0, sizeof(who.owner)));
    unlink(path);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fz f = {data, size};
    char bytes[RECORD_BYTES];
    struct record r;
    uint8_t how = fz_u8(&f);
    if (how % 4 == 0) {
        reads_back(&f);
        return 0;
    }
    size_t n;
    memset(bytes, ' ', sizeof(bytes));
    const uint8_t *p = fz_bytes(&f, RECORD_BYTES, &n);
    memcpy(bytes, p, n);
    if (how & 4)
        put_sum(bytes);
    parse_record(bytes, &r);
    FZ_HOLDS(r.state <= STATE_RELEASED && memchr(r.owner, 0, sizeof(r.owner)) && memchr(r.host, 0, sizeof(r.host)) && memchr(r.boot, 0, sizeof(r.boot)));
    if (r.state != STATE_DAMAGED)
        FZ_HOLDS(r.ttl_ms > 0 && r.ttl_ms <= 3600000);
    if (how >= 250)         /* rarely: a damaged record is read again for some ms */
        in_a_directory(bytes, &f);
    return 0;
}
