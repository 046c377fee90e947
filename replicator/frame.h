/*
 * frame.h - what travels on a data lane: numbered frames of whole records. docs/link.md.
 *
 *     0  u32 magic "RPFR"   4  u32 payload bytes   8  u64 number, from 1   16  u64 XXH3_64bits of bytes 0-15
 *    24  records (stream.h), whole ones; their sequence begins at 0 in every frame
 *
 * The number gives all frames of a session one order, whatever lane each of them takes, and makes it harmless to send one
 * twice.
 */
#ifndef RP_REPLICATOR_FRAME_H
#define RP_REPLICATOR_FRAME_H

#include "core/stream.h"

#define RP_FRAME_HEADER 24u
#define RP_FRAME_FULL (256u << 10)      /* a frame that has grown so large is sent */
#define RP_FRAME_MAX (RP_FRAME_FULL + RP_RECORD_MAX + RP_RECORD_HEADER)     /* payload bytes */
#define RP_FRAME_WINDOW (8u << 20)      /* bytes sent, or waiting for it, that the other side has not taken */

void rp_frame_put_header(uint8_t out[RP_FRAME_HEADER], uint32_t len, uint64_t number);
/* -EBADMSG: not a frame's header, or a length beyond RP_FRAME_MAX. */
int rp_frame_get_header(const uint8_t in[RP_FRAME_HEADER], uint32_t *len, uint64_t *number, struct rp_error *err) RP_MUST_CHECK;
/* Are these whole, undamaged records in sequence? -EBADMSG with the place. */
int rp_frame_check(const uint8_t *payload, uint32_t len, struct rp_error *err) RP_MUST_CHECK;
/* The records of a payload that was checked: *pos = 0 first; false at the end. */
bool rp_frame_next(const uint8_t *payload, uint32_t len, uint32_t *pos, struct rp_record *out);

#endif
