/*
 * virtq.h - a split virtqueue (virtio 1.2, section 2.7): indirect descriptors, EVENT_IDX, VERSION_1.
 *
 * The rings and descriptors are the guest's memory, and the guest is hostile: every address is range-checked, every
 * field is read once into a local before it is checked and used. Whatever does not make sense gives -EBADMSG with
 * the reason; the transport then sets DEVICE_NEEDS_RESET and the queue is not looked at again.
 *
 * Completed chains are pushed (written to the used ring) and then published together (the index is stored); what was
 * written is marked dirty. Thread: machine lock.
 */
#ifndef RP_VMM_VIRTQ_H
#define RP_VMM_VIRTQ_H

#include "core/state.h"
#include "vmm/guest_ram.h"

#define RP_VIRTQ_SIZE_MAX 1024
#define RP_VIRTQ_NO_VECTOR 0xffffu
#define RP_CHAIN_SEGS_MAX 1024          /* buffers of one chain, indirect ones included */
#define RP_CHAIN_BYTES_MAX (1ull << 32) /* virtio 1.2, 2.7.5: a chain is at most 2^32 bytes */

struct rp_virtq_state {
    uint64_t desc_gpa, avail_gpa, used_gpa;
    uint16_t size;          /* entries, power of two */
    uint16_t vector;        /* MSI-X vector or RP_VIRTQ_NO_VECTOR */
    uint16_t avail_idx;     /* next entry of the available ring to take */
    uint16_t used_idx;      /* next entry of the used ring to write */
    uint16_t signalled;     /* used_idx when the guest was last told (or decided against) */
    uint16_t enabled;
    uint32_t pad;
};
extern const struct rp_state_table rp_virtq_state_table;

/* One request: `nout` buffers that the guest filled, then `nin` that it wants filled, as host memory. */
struct rp_chain {
    uint16_t head;
    unsigned nout, nin;
    uint64_t out_bytes, in_bytes;
    struct iovec iov[RP_CHAIN_SEGS_MAX];    /* out first, in after */
};

struct rp_virtq {
    struct rp_virtq_state s;
    struct rp_guest_ram *ram;
    uint16_t size_max;
    bool event_idx, indirect;       /* negotiated */
    uint8_t *desc, *avail, *used;   /* host addresses of the three parts, NULL while not enabled */
    uint16_t published;             /* used_idx as the guest sees it */
};

void rp_virtq_reset(struct rp_virtq *q);    /* size_max and ram stay */
/* Checks addresses and size, and makes the queue ready; `features` are the negotiated ones. Also after a load. */
int rp_virtq_enable(struct rp_virtq *q, uint64_t features, struct rp_error *err) RP_MUST_CHECK;

/* 1: *c is the next request; 0: none; -EBADMSG. */
int rp_virtq_pop(struct rp_virtq *q, struct rp_chain *c, struct rp_error *err) RP_MUST_CHECK;
/* How many requests wait; -EBADMSG when the guest's index is impossible. */
int rp_virtq_waiting(struct rp_virtq *q, struct rp_error *err) RP_MUST_CHECK;
/* Puts back the last n popped. */
void rp_virtq_unpop(struct rp_virtq *q, uint16_t n);
/* Reads the chain at `head` again: a request that was in flight at a cut. */
int rp_virtq_fetch(struct rp_virtq *q, uint16_t head, struct rp_chain *c, struct rp_error *err) RP_MUST_CHECK;
/* The request is done, `len` bytes of its in-buffers were written. Not visible before publish. */
void rp_virtq_push(struct rp_virtq *q, uint16_t head, uint32_t len);
/* Makes what was pushed visible; true: the guest wants an interrupt for it. */
bool rp_virtq_publish(struct rp_virtq *q);
/* Asks for kicks (true) or not; asking returns true when requests came in between and no kick will tell. */
bool rp_virtq_want_kicks(struct rp_virtq *q, bool want);
/* Asks for a kick once more than `n` requests wait; true when they do already. */
bool rp_virtq_want_kick_beyond(struct rp_virtq *q, uint16_t n);

/* Buffers as bytes: copies min(len, what there is beyond off); returns how much. */
size_t rp_iov_read(const struct iovec *iov, unsigned n, uint64_t off, void *out, size_t len);
size_t rp_iov_write(const struct iovec *iov, unsigned n, uint64_t off, const void *in, size_t len);
/* Cuts `off` bytes from the front, keeps at most `len`: writes the rest to `out` (n entries) and returns how many. */
unsigned rp_iov_slice(const struct iovec *iov, unsigned n, uint64_t off, uint64_t len, struct iovec *out);
/* Writes into a chain's in-buffers at `off` and marks the pages. */
size_t rp_chain_write(struct rp_guest_ram *ram, const struct rp_chain *c, uint64_t off, const void *in, size_t len);
size_t rp_chain_read(const struct rp_chain *c, uint64_t off, void *out, size_t len);

#endif
