#include "replicator/rdma_mem.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

int rp_rdma_mem_alloc(struct rp_rdma_mem *m, struct ibv_pd *pd, size_t bytes, bool remote, struct rp_error *err)
{
    /* Populated here: registering memory that was never touched costs its page faults one by one. */
    void *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (base == MAP_FAILED)
        return rp_error_set(err, errno, "no memory for an RDMA buffer of %zu KiB", bytes >> 10);
    struct ibv_mr *mr = ibv_reg_mr(pd, base, bytes, remote ? IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE : 0);
    if (!mr) {
        int e = errno;
        munmap(base, bytes);
        return rp_error_exit(err, RP_EXIT_HOST, e, "cannot register an RDMA buffer of %zu KiB: %s%s", bytes >> 10, strerror(e),
                             e == ENOMEM ? "; raise the limit on locked memory (ulimit -l)" : "");
    }
    *m = (struct rp_rdma_mem){.base = base, .bytes = bytes, .mr = mr};
    return 0;
}

void rp_rdma_mem_free(struct rp_rdma_mem *m)
{
    if (!m->base)
        return;
    ibv_dereg_mr(m->mr);
    munmap(m->base, m->bytes);
    *m = (struct rp_rdma_mem){0};
}
