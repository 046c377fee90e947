/*
 * epoch.h - the epoch: everything that changed between two consistent cuts, plus device state at the
 * second cut. This is the in-memory model; stream.h is how it travels.
 */
#ifndef RP_CORE_EPOCH_H
#define RP_CORE_EPOCH_H

#include "core/bytes.h"
#include "core/digest.h"
#include "core/state.h"

#define RP_VM_NAME_MAX 64

enum rp_epoch_reason {          /* why it was cut; permanent numbers */
    RP_CUT_REQUEST = 1,         /* a person or a program asked */
    RP_CUT_PERIOD = 2,          /* the epoch's length was over */
    RP_CUT_OUTPUT = 3,          /* an output waited in the gate */
    RP_CUT_MEMORY = 4,          /* the dirty set neared the memory bound */
    RP_CUT_DIVERGED = 5,        /* COLO: outputs differed */
    RP_CUT_FINAL = 6,           /* migration or switchover: the source stops here */
};

#define RP_EPOCH_FULL 1u        /* self-contained: its RAM records cover every non-zero page … */
#define RP_EPOCH_RESYNC 2u      /* … or, with this, every page that differs from what the receiver has said it holds: on a link
                                   only (docs/link.md), with RP_EPOCH_FULL */

struct rp_epoch_header {
    uint8_t vm_id[16];
    uint8_t vm_name[RP_VM_NAME_MAX];    /* UTF-8, NUL-padded */
    uint64_t number;                    /* 1, 2, 3 … along the VM's life, across hosts */
    uint64_t parent;                    /* 0 when RP_EPOCH_FULL */
    uint64_t term;                      /* lease term it was produced under, 0: none */
    uint32_t flags;
    uint32_t page_size;                 /* 4096 */
    uint64_t gfn_end;
    uint32_t nregions;
    uint32_t reserved;
    struct rp_ram_region regions[RP_RAM_REGIONS_MAX];
};
extern const struct rp_state_table rp_epoch_header_table;

struct rp_epoch_trailer {
    uint64_t number;                    /* again: which epoch ends here */
    uint64_t guest_ns;                  /* guest (kvmclock) time at the cut */
    uint64_t wall_ns;                   /* host CLOCK_REALTIME at the cut */
    uint32_t reason;                    /* enum rp_epoch_reason */
    uint32_t sections;                  /* how many SECTION records came */
    uint64_t ram_records;
    uint64_t ram_pages;                 /* page entries, a page sent twice counts twice */
    uint64_t disk_bytes;
    uint64_t digest_lo, digest_hi;      /* RAM digest at the cut */
};
extern const struct rp_state_table rp_epoch_trailer_table;

/* One device's state as it travels: owned bytes inside an rp_buf elsewhere, or borrowed from a record. */
struct rp_section {
    char name[32];          /* the state table's name */
    uint32_t instance;      /* vCPU index, PCI slot, … */
    uint16_t version;
    const uint8_t *bytes;   /* TLV fields, see state.h */
    uint32_t len;
};

/* Sections of one cut: a row of encoded SECTION payloads (stream.h) that any sink can be handed. */
struct rp_sections {
    struct rp_buf buf;      /* u32 length + payload each */
    uint32_t count;
};
void rp_sections_fini(struct rp_sections *s);
void rp_sections_reset(struct rp_sections *s);
/* Encodes `state` with its table and appends it. -ENOMEM. */
int rp_sections_add(struct rp_sections *s, const struct rp_state_table *t, uint32_t instance, const void *state,
                    struct rp_error *err) RP_MUST_CHECK;
/* Appends a section whose bytes are there already (copied). -ENOMEM. */
int rp_sections_put(struct rp_sections *s, const struct rp_section *sec) RP_MUST_CHECK;
/* Iterates: *pos = 0 first; false at the end. The section borrows s->buf. */
bool rp_sections_next(const struct rp_sections *s, size_t *pos, struct rp_section *out);
/* Finds one by name and instance. */
bool rp_sections_find(const struct rp_sections *s, const char *name, uint32_t instance, struct rp_section *out);
/* Decodes a section that `t` describes (rp_state_decode says how). -EPROTONOSUPPORT: written by a newer reprise. */
int rp_section_decode(const struct rp_state_table *t, const struct rp_section *sec, void *state, struct rp_error *err) RP_MUST_CHECK;

#endif
