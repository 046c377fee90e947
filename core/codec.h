/*
 * codec.h - page codecs: one page of 4,096 bytes in, at most 4,096 bytes out.
 *
 * zero: no payload. raw: the page. lz4: one LZ4 block. delta: against the same page as of the parent
 * epoch, a row of { varint unchanged bytes | varint changed bytes | the changed bytes } (the idea of
 * XBZRLE; the bytes are ours, docs/stream.md).
 * Pure functions; any thread.
 */
#ifndef RP_CORE_CODEC_H
#define RP_CORE_CODEC_H

#include "core/ram.h"

#include <stddef.h>

enum rp_codec_id {          /* permanent numbers, on the wire */
    RP_CODEC_ZERO = 0,
    RP_CODEC_RAW = 1,
    RP_CODEC_LZ4 = 2,
    RP_CODEC_DELTA = 3,
    RP_CODEC_COUNT
};
const char *rp_codec_name(uint8_t id);

/* Each returns the encoded length, or 0 when the result would not be smaller than `limit` bytes. `out`: limit bytes. */
uint32_t rp_lz4_encode(const uint8_t *page, uint8_t *out, uint32_t limit);
uint32_t rp_delta_encode(const uint8_t *parent, const uint8_t *page, uint8_t *out, uint32_t limit);
/* A delta without the parent at hand: bit i of `changed` says that the 128 bytes from 128 i on may differ from it. */
uint32_t rp_delta_encode_blocks(uint32_t changed, const uint8_t *page, uint8_t *out, uint32_t limit);

/* Decode into `page` (4,096 bytes). For delta `page` holds the parent's contents on entry and is only
 * written after the whole payload was validated. Hostile input: -EBADMSG, with the reason. */
int rp_lz4_decode(const uint8_t *in, uint32_t len, uint8_t *page, struct rp_error *err) RP_MUST_CHECK;
int rp_delta_decode(const uint8_t *in, uint32_t len, uint8_t *page, struct rp_error *err) RP_MUST_CHECK;
/* Decodes once more what was decoded before; cannot fail. */
void rp_delta_again(const uint8_t *in, uint32_t len, uint8_t *page);

#endif
