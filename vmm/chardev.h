/*
 * chardev.h - the host end of a console: stdio, a file, a unix socket that one client at a time connects to, or nothing.
 *
 * Output goes into a bounded buffer and on to the descriptor as fast as that takes it; when nobody reads, what does not
 * fit is dropped and counted: a console never holds the VM up (INV-5). Input is offered to the device as it comes;
 * what the device does not take waits, and with it the sender.
 * Thread: machine lock held; input is called on the io thread.
 */
#ifndef RP_VMM_CHARDEV_H
#define RP_VMM_CHARDEV_H

#include "vmm/loop.h"
#include "vmm/machine.h"

struct rp_chardev;
/* Takes up to `len` bytes; returns how many. */
typedef size_t rp_chardev_input_fn(void *ctx, const uint8_t *bytes, size_t len);

/* `what` ("serial", "console") names it in errors. stdio on a terminal: raw input until destroy, Ctrl-A x asks the
 * process to end (SIGTERM to itself). */
int rp_chardev_create(const struct rp_chardev_config *cfg, const char *what, struct rp_loop *loop, rp_chardev_input_fn *input,
                      void *ctx, struct rp_chardev **out, struct rp_error *err) RP_MUST_CHECK;
void rp_chardev_destroy(struct rp_chardev *c);      /* sends what it can without waiting */
void rp_chardev_write(struct rp_chardev *c, const void *bytes, size_t len);
/* The device can take input again. */
void rp_chardev_more(struct rp_chardev *c);
uint64_t rp_chardev_dropped(const struct rp_chardev *c);
/* The terminal's size; false: there is no terminal. */
bool rp_chardev_size(const struct rp_chardev *c, uint16_t *cols, uint16_t *rows);
/* `fn` runs on the io thread when the terminal's size may have changed. Blocks SIGWINCH in the calling thread, and so in
 * the threads that it makes from now on. Without a terminal it does nothing. */
int rp_chardev_watch_size(struct rp_chardev *c, void (*fn)(void *ctx), struct rp_error *err) RP_MUST_CHECK;

#endif
