/*
 * qmp_input.h - cuts a stream of bytes into JSON objects, however the peer splits or joins them. Bounded memory:
 * whatever comes in, no more than RP_QMP_MESSAGE_MAX bytes are kept. Pure (no I/O), so it can be fuzzed.
 */
#ifndef RP_TOOLS_QMP_INPUT_H
#define RP_TOOLS_QMP_INPUT_H

#include "core/bytes.h"

#include <jansson.h>

#define RP_QMP_MESSAGE_MAX (64u << 10)
#define RP_QMP_DEPTH_MAX 32u

struct rp_qmp_input {
    struct rp_buf buf;      /* bytes that came and were not yet taken */
    size_t scanned;         /* of them, already looked at for the message in work */
    unsigned depth;         /* open brackets there */
    unsigned deepest;
    bool in_string, escaped;
    bool broken;            /* the last message was broken off in its line, whose rest is skipped */
};

void rp_qmp_input_fini(struct rp_qmp_input *in);
/* -ENOMEM. The caller stops feeding while next() has messages to give, so that the bound holds. */
int rp_qmp_input_feed(struct rp_qmp_input *in, const void *bytes, size_t n) RP_MUST_CHECK;
/* 1: *message is a JSON object (the caller's reference); 0: more bytes are needed; -EBADMSG: what came was no JSON
 * object, says why; it was skipped and the next call goes on behind it. A message that has not ended is broken off by a
 * byte 0xff anywhere, and by a control character inside a string. -EMSGSIZE: too long, nothing can follow. */
int rp_qmp_input_next(struct rp_qmp_input *in, json_t **message, struct rp_error *err) RP_MUST_CHECK;

#endif
