/*
 * gate.h - the output gate (INV-1, output commit): what leaves the VM waits here until the epoch that produced it
 * is committed, in order, in bounded memory.
 *
 *              cut(n), hold wanted            release(e): frames of epochs <= e leave, in order
 *     OPEN ───────────────────────► HOLDING ───────────────────────────────────► HOLDING
 *      ▲                               │ hold(false), release(UINT64_MAX): everything leaves
 *      └───────────────────────────────┘
 *
 * Invariants (tests cite them):
 *   GATE-1  an output handed in after cut n leaves only after release(e >= n + 1), while the gate holds;
 *   GATE-2  outputs of one port leave in the order in which they came (ports do not wait for each other);
 *   GATE-3  at or past the deadline nothing leaves, open or holding; it stays and may leave once the deadline is moved;
 *   GATE-4  nothing is dropped: a full gate says -EAGAIN and the port's `resume` is called when there is room.
 *
 * A port is one output (a NIC, a console). An open gate with nothing waiting passes an output on without a copy.
 * Threads: rp_gate_send on the io thread or a vCPU thread; release, hold, cut, deadline, stats from any thread. The
 * gate has its own lock, a leaf: a port's `write` runs under it and must not block nor call back into the gate.
 */
#ifndef RP_VMM_GATE_H
#define RP_VMM_GATE_H

#include "core/error.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

struct rp_gate;
struct rp_gate_port;
struct rp_loop;

struct rp_gate_ops {
    /* One output, whole. 0; -EAGAIN: the host cannot take it now (call rp_gate_writable once it can); other errors:
     * lost at the host like on a wire, counted. */
    int (*write)(void *ctx, const struct iovec *iov, int n);
    /* A batch of writes ended. 0, or -EAGAIN as above when something is still buffered. May be NULL. */
    int (*flush)(void *ctx);
    /* `write` said -EAGAIN, or the gate was full, and there is room again: runs on the io thread, machine lock held. */
    void (*resume)(void *ctx);
    /* `write` said -EAGAIN: on the io thread, machine lock held: watch for the descriptor to become writable. May be NULL. */
    void (*blocked)(void *ctx);
};

struct rp_gate_stats {
    uint64_t frames, bytes;             /* left, held or not */
    uint64_t held_frames, held_bytes;   /* left after having waited */
    uint64_t waiting_frames, waiting_bytes; /* wait now */
    uint64_t full;                      /* times that backpressure began */
    uint64_t late;                      /* times that the deadline stopped an output */
    uint64_t errors;
    uint64_t hold_p50_ns, hold_p99_ns, hold_max_ns; /* of those that waited (core/histogram.h) */
};

/* `bound_bytes`: payload and bookkeeping that may wait; one port may use half of it. `loop`: where resume and blocked
 * run; NULL (tests): they run inside rp_gate_poll. */
int rp_gate_create(struct rp_loop *loop, uint64_t bound_bytes, struct rp_gate **out, struct rp_error *err) RP_MUST_CHECK;
void rp_gate_destroy(struct rp_gate *g);            /* after its ports; what waits is thrown away, unsent */
int rp_gate_port_add(struct rp_gate *g, const struct rp_gate_ops *ops, void *ctx, struct rp_gate_port **out) RP_MUST_CHECK;
/* Throws away what waits for this port. */
void rp_gate_port_remove(struct rp_gate_port *p);

/* Hands one output in. 0: it left or waits; -EAGAIN: not taken, `resume` will be called. */
int rp_gate_send(struct rp_gate_port *p, const struct iovec *iov, int n) RP_MUST_CHECK;
/* End of a batch of sends: flushes the ports that were written. */
void rp_gate_flush(struct rp_gate_port *p);
/* The port's descriptor takes writes again: sends what may leave. io thread. False: it is full again already (keep
 * watching; `blocked` is not called for it). */
bool rp_gate_writable(struct rp_gate_port *p);

/* The machine was cut: what came until now belongs to `epoch`, what comes now to the next one. */
void rp_gate_cut(struct rp_gate *g, uint64_t epoch);
/* From the next cut on outputs wait (true); or everything leaves now and the gate is open (false). */
void rp_gate_hold(struct rp_gate *g, bool hold);
void rp_gate_release(struct rp_gate *g, uint64_t epoch);
/* CLOCK_BOOTTIME (a lease also runs out while the host is suspended); 0: none. Looked at immediately before each write. */
void rp_gate_set_deadline(struct rp_gate *g, uint64_t deadline_ns);
/* Readable when the first output since the last cut begins to wait. The reader reads it empty. */
int rp_gate_fd(const struct rp_gate *g);
void rp_gate_stats(struct rp_gate *g, struct rp_gate_stats *out);
/* Runs due resume and blocked calls (only without a loop). */
void rp_gate_poll(struct rp_gate *g);

#endif
