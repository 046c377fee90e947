/*
 * virtio-rng (virtio 1.2, section 5.4): the host's entropy. A request is answered at once, with at most REQUEST_MAX
 * bytes, so nothing is ever in flight at a cut. What a guest was given is its own: two VMs entered from one epoch draw
 * different bytes from then on (vmgenid.h tells them to).
 */
#include "vmm/virtio_pci.h"

#include <errno.h>
#include <linux/virtio_ids.h>
#include <stdlib.h>
#include <sys/random.h>

#define QUEUE_SIZE 64u
#define REQUEST_MAX 4096u   /* bytes: a used length below the buffer's is allowed, and Linux asks for 64 */
#define BURST 16u           /* requests per turn of the io thread */

struct rp_virtio_rng_state {
    struct rp_virtio_state virtio;
};

RP_TABLE(rp_virtio_rng_table, "virtio-rng", 1, struct rp_virtio_rng_state,
    RP_STRUCT(struct rp_virtio_rng_state, virtio, 1, &rp_virtio_state_table));

struct rp_virtio_rng {
    struct rp_virtio v;             /* first, for rp_virtio_device_stop and the like */
    struct rp_chain chain;
};

/* Entropy into the request in rng->chain; 1, or -EBADMSG. */
static int answer(struct rp_virtio_rng *rng, struct rp_error *err)
{
    struct rp_chain *c = &rng->chain;
    size_t len = c->in_bytes < REQUEST_MAX ? (size_t)c->in_bytes : REQUEST_MAX;
    uint8_t bytes[REQUEST_MAX];

    if (c->in_bytes == 0)
        return rp_error_set(err, EBADMSG, "request %u has no buffer to fill", c->head);
    while (getrandom(bytes, len, 0) != (ssize_t)len)    /* whole, once the host has booted; a signal may come first */
        ;
    len = rp_chain_write(rng->v.env.ram, c, 0, bytes, len);
    explicit_bzero(bytes, sizeof(bytes));
    rp_virtq_push(rp_virtio_queue(&rng->v, 0), c->head, (uint32_t)len);
    return 1;
}

static void on_notify(void *dev, unsigned n)
{
    struct rp_virtio_rng *rng = dev;
    struct rp_virtq *q = rp_virtio_queue(&rng->v, n);
    struct rp_error err = {0};
    unsigned burst = 0;
    int rc;

    do {
        rp_virtq_want_kicks(q, false);
        while (burst < BURST && (rc = rp_virtq_pop(q, &rng->chain, &err)) != 0) {
            if (rc == 1)
                rc = answer(rng, &err);
            if (rc < 0) {
                rp_virtio_fail(&rng->v, n, &err);
                return;
            }
            burst++;
        }
        rp_virtio_publish(&rng->v, n);
        if (burst >= BURST) {
            rp_virtio_again(&rng->v, n);    /* others have their turn */
            return;
        }
    } while (rp_virtq_want_kicks(q, true));
}

static const struct rp_virtio_ops virtio_ops = {.notify = on_notify};

static int rng_save(void *dev, struct rp_sections *out, uint32_t instance, struct rp_error *err)
{
    struct rp_virtio_rng *rng = dev;
    struct rp_virtio_rng_state s;

    rp_virtio_save(&rng->v, &s.virtio);
    return rp_sections_add(out, &rp_virtio_rng_table, instance, &s, err);
}

static int rng_load(void *dev, const struct rp_section *sec, struct rp_error *err)
{
    struct rp_virtio_rng *rng = dev;
    struct rp_virtio_rng_state s;
    int rc;

    rp_virtio_save(&rng->v, &s.virtio);
    rc = rp_section_decode(&rp_virtio_rng_table, sec, &s, err);
    return rc ? rc : rp_virtio_load(&rng->v, &s.virtio, err);
}

static void rng_destroy(void *dev)
{
    struct rp_virtio_rng *rng = dev;

    rp_virtio_fini(&rng->v);
    free(rng);
}

static const struct rp_device_ops device_ops = {.save = rng_save, .load = rng_load, .reset = rp_virtio_device_reset,
                                                .start = rp_virtio_device_start, .stop = rp_virtio_device_stop, .destroy = rng_destroy};

int rp_virtio_rng_create(const struct rp_device_env *env, unsigned slot, struct rp_device *out, struct rp_error *err)
{
    struct rp_virtio_rng *rng = calloc(1, sizeof(*rng));
    struct rp_virtio_config vc = {.name = rp_virtio_rng_table.name, .type = VIRTIO_ID_RNG, .class_code = 0x00ff00, .nqueues = 1,
                                  .queue_size = QUEUE_SIZE, .ops = &virtio_ops, .dev = rng};
    int rc;

    if (!rng)
        return rp_error_set(err, ENOMEM, "virtio-rng: no memory");
    rc = rp_virtio_init(&rng->v, env, slot, &vc, err);
    if (rc) {
        free(rng);
        return rc;
    }
    *out = (struct rp_device){.section = rp_virtio_rng_table.name, .instance = slot, .ops = &device_ops, .dev = rng};
    return 0;
}
