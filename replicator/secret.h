/* secret.h - the pre-shared key of a pair, and proofs of knowing it (HMAC-SHA256). Any thread. */
#ifndef RP_REPLICATOR_SECRET_H
#define RP_REPLICATOR_SECRET_H

#include "core/error.h"

#include <stdbool.h>
#include <stdint.h>

#define RP_NONCE_BYTES 32
#define RP_PROOF_BYTES 32

struct rp_secret {
    uint8_t bytes[64];
    uint32_t len;       /* 0: no key, and whoever reaches the port may speak */
};

/* Reads a key file: 16 … 64 bytes after trailing newlines are cut; not readable by others. RP_EXIT_USAGE on anything else. */
int rp_secret_load(const char *path, struct rp_secret *out, struct rp_error *err) RP_MUST_CHECK;
int rp_secret_nonce(uint8_t out[RP_NONCE_BYTES], struct rp_error *err) RP_MUST_CHECK;
/* HMAC(key, label, mine, theirs, bound): `bound` ties the proof to what was said in the clear. */
void rp_secret_prove(const struct rp_secret *key, const char *label, const uint8_t mine[RP_NONCE_BYTES],
                     const uint8_t theirs[RP_NONCE_BYTES], const void *bound, uint32_t bound_len, uint8_t out[RP_PROOF_BYTES]);
bool rp_secret_equal(const uint8_t a[RP_PROOF_BYTES], const uint8_t b[RP_PROOF_BYTES]);   /* constant time */

#endif
