/*
 * cow.h - copy-on-write: guest pages that are write-protected now and copied later, by userfaultfd.
 *
 *               rp_cow_protect                 rp_cow_copy                      rp_cow_finish
 *   writable ──────────────────► PROTECTED ──────────────────► COPIED ────────────────────────► writable
 *            (machine stands)        └── a write: "cow faults" copies ──┘ and lets that page go at once
 *
 * A page that is protected has its slot in the arena (INV-5: nothing is ever allocated in a fault), so a fault needs nobody but
 * the thread "cow faults": no lock that a faulting thread may hold, no vCPU, no I/O, no sink. Faulting may be whoever writes guest
 * memory: vCPUs in KVM_RUN, device threads, the kernel for read(2) and io_uring.
 *
 * C1  A page's contents are copied before anybody can write it again; each page once.
 * C2  What was protected is finished: by the engine, whatever became of the sink and of the run (rp_cow_destroy at the latest).
 * C3  Writes seen by the source's dirty tracking stay so: a page that was let go is written, and dirty, after the cut.
 *
 * Memory has to be shared (a memfd): of private memory only pages that exist can be protected. Pages of hugetlbfs cannot be
 * protected one by one, which create finds out; transparent huge pages can: the mapping is split where it is protected, the
 * guest goes on with small pages there, and what that costs is measured with the rest.
 *
 * Threads: "cow faults"; all calls from the engine's, rp_cow_copy from its pool, too. Lock: `serving`, a leaf.
 */
#ifndef RP_REPLICATOR_COW_H
#define RP_REPLICATOR_COW_H

#include "replicator/arena.h"
#include "replicator/encoder.h"

struct rp_cow;

/* A run of frames that is protected as one, and the pages of it that are to be copied: list[first … first + pages). The others
 * are clean; a write to one of them is a fault for nothing. */
struct rp_cow_run {
    uint64_t gfn;
    uint32_t span;
    uint32_t first, pages;
};

/* What it costs here: measured on a page of its own at create; fault_ns goes on being measured. */
struct rp_cow_costs {
    double run_ns, page_ns;     /* to protect: a run, and each page of it */
    double fault_ns;            /* a write that faults, as whoever writes sees it */
    double after_ns;            /* the next write to a page that was let go: its mapping has to be made writable again */
};

/* Watches guest RAM's write faults from here on and starts the thread. Proves on memory of its own that faults are served.
 * -EPERM, -EOPNOTSUPP: the host does not have it (uffd.h); -EINVAL: huge pages; -EBUSY: RAM's faults belong to somebody else.
 * Borrows the arena. Guest RAM must not be given back to the host while pages are protected (rp_source_ops.keep). */
int rp_cow_create(const struct rp_ram_view *ram, struct rp_arena *arena, struct rp_cow **out, struct rp_error *err) RP_MUST_CHECK;
/* Whoever hangs in a fault goes on. Nothing may be protected any more, unless its copy is of no use to anybody. */
void rp_cow_destroy(struct rp_cow *c);
/* False once an ioctl has failed: nothing is protected any more, and nothing should be. */
bool rp_cow_usable(const struct rp_cow *c);

/* The machine stands, and no run of an earlier cut is unfinished: begin, protect each run, begun. Faults are served from `begun`
 * on. A run that cannot be protected is copied at once: < 0, and it has to be finished like any other. */
void rp_cow_begin(struct rp_cow *c);
int rp_cow_protect(struct rp_cow *c, const struct rp_captured *list, const struct rp_cow_run *run);
void rp_cow_begun(struct rp_cow *c);
/* Copies list[i … i + n) as far as nobody has yet. */
void rp_cow_copy(struct rp_cow *c, const struct rp_captured *list, uint64_t n);
/* All pages of the run are copied: lets it go. */
void rp_cow_finish(struct rp_cow *c, const struct rp_captured *list, const struct rp_cow_run *run);
/* All runs are finished. Returns the number of faults since `begin`. */
uint64_t rp_cow_end(struct rp_cow *c);

void rp_cow_costs(struct rp_cow *c, struct rp_cow_costs *out);
uint64_t rp_cow_cpu_ns(const struct rp_cow *c);     /* that the thread has used */

#endif
