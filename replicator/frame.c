#include "replicator/frame.h"

#include <errno.h>
#include <xxhash.h>

#define MAGIC 0x52465052u       /* "RPFR" */

void rp_frame_put_header(uint8_t out[RP_FRAME_HEADER], uint32_t len, uint64_t number)
{
    rp_st32(out, MAGIC);
    rp_st32(out + 4, len);
    rp_st64(out + 8, number);
    rp_st64(out + 16, XXH3_64bits(out, 16));
}

static int bad(struct rp_error *err, const char *why)
{
    return rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG, "a lane's frame: %s", why);
}

int rp_frame_get_header(const uint8_t in[RP_FRAME_HEADER], uint32_t *len, uint64_t *number, struct rp_error *err)
{
    if (rp_ld32(in) != MAGIC)
        return bad(err, "no frame begins here");
    if (rp_ld64(in + 16) != XXH3_64bits(in, 16))
        return bad(err, "its header is damaged");
    if (rp_ld32(in + 4) == 0 || rp_ld32(in + 4) > RP_FRAME_MAX || rp_ld64(in + 8) == 0)
        return bad(err, "an impossible length or number");
    *len = rp_ld32(in + 4);
    *number = rp_ld64(in + 8);
    return 0;
}

int rp_frame_check(const uint8_t *payload, uint32_t len, struct rp_error *err)
{
    uint32_t pos = 0;
    for (uint64_t seq = 0; pos < len; seq++) {
        struct rp_record r;
        if (len - pos < RP_RECORD_HEADER)
            return bad(err, "it ends inside a record's header");
        int rc = rp_record_peek(payload + pos, pos, &r, err);
        if (rc < 0)
            return rc;
        if (r.len > len - pos - RP_RECORD_HEADER)
            return bad(err, "it ends inside a record");
        rc = rp_record_check(payload + pos, payload + pos + RP_RECORD_HEADER, seq, &r, err);
        if (rc < 0)
            return rc;
        pos += RP_RECORD_HEADER + r.len;
    }
    return 0;
}

bool rp_frame_next(const uint8_t *payload, uint32_t len, uint32_t *pos, struct rp_record *out)
{
    if (*pos >= len || rp_record_peek(payload + *pos, *pos, out, NULL) < 0)
        return false;
    out->payload = payload + *pos + RP_RECORD_HEADER;
    *pos += RP_RECORD_HEADER + out->len;
    return true;
}
