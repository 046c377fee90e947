/* Devices that are declared and not there yet: weak, so that whoever lands one need not touch this file. */
#include "vmm/devices.h"

#include <errno.h>
#include <stdlib.h>

#define WEAK __attribute__((weak))

WEAK int rp_gate_create(struct rp_loop *loop, uint64_t bound_bytes, struct rp_gate **out, struct rp_error *err)
{ (void)loop; (void)bound_bytes; (void)err; *out = NULL; return 0; }
WEAK void rp_gate_destroy(struct rp_gate *g) { (void)g; }
WEAK void rp_gate_cut(struct rp_gate *g, uint64_t epoch) { (void)g; (void)epoch; }
WEAK void rp_gate_hold(struct rp_gate *g, bool hold) { (void)g; (void)hold; }
WEAK void rp_gate_release(struct rp_gate *g, uint64_t epoch) { (void)g; (void)epoch; }
WEAK int rp_gate_fd(const struct rp_gate *g) { (void)g; return -1; }
WEAK int rp_virtio_net_create(const struct rp_device_env *env, unsigned slot, const struct rp_nic_config *cfg,
                         const uint8_t mac[6], struct rp_device *out, struct rp_error *err)
{ (void)env; (void)slot; (void)cfg; (void)mac; (void)out; return rp_error_set(err, ENOSYS, "virtio-net: not there yet"); }
WEAK void rp_virtio_net_info(const struct rp_device *d, struct rp_nic_info *out) { (void)d; (void)out; }
WEAK int rp_virtio_rng_create(const struct rp_device_env *env, unsigned slot, struct rp_device *out, struct rp_error *err)
{ (void)env; (void)slot; (void)out; return rp_error_set(err, ENOSYS, "virtio-rng: not there yet"); }
WEAK int rp_virtio_console_create(const struct rp_device_env *env, unsigned slot, const struct rp_chardev_config *cfg,
                             struct rp_device *out, struct rp_error *err)
{ (void)env; (void)slot; (void)cfg; (void)out; return rp_error_set(err, ENOSYS, "virtio-console: not there yet"); }
WEAK int rp_virtio_balloon_create(const struct rp_device_env *env, unsigned slot, struct rp_device *out, struct rp_error *err)
{ (void)env; (void)slot; (void)out; return rp_error_set(err, ENOSYS, "virtio-balloon: not there yet"); }
