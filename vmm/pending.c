/* Devices that are declared and not there yet: weak, so that whoever lands one need not touch this file. */
#include "vmm/devices.h"

#include <errno.h>
#include <stdlib.h>

#define WEAK __attribute__((weak))

WEAK int rp_virtio_console_create(const struct rp_device_env *env, unsigned slot, const struct rp_chardev_config *cfg,
                             struct rp_device *out, struct rp_error *err)
{ (void)env; (void)slot; (void)cfg; (void)out; return rp_error_set(err, ENOSYS, "virtio-console: not there yet"); }
