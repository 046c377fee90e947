#include "replicator/control.h"

#include "core/bytes.h"
#include "core/clock.h"

#define MESSAGE_BYTES 24u

int rp_control_send(struct rp_control *c, uint32_t type, uint64_t a, uint64_t b)
{
    uint8_t msg[MESSAGE_BYTES] = {0};
    rp_st32(msg, type);
    rp_st64(msg + 8, a);
    rp_st64(msg + 16, b);
    pthread_mutex_lock(&c->send_lock);
    int rc = rp_conn_send(c->conn, msg, sizeof(msg));
    pthread_mutex_unlock(&c->send_lock);
    return rc;
}

int rp_control_recv(struct rp_control *c, struct rp_control_msg *out, int timeout_ms)
{
    uint8_t msg[MESSAGE_BYTES];
    int rc = rp_conn_recv_all(c->conn, msg, sizeof(msg), timeout_ms < 0 ? 0 : rp_clock_ns() + (uint64_t)timeout_ms * 1000000u);
    if (rc < 0)
        return rc;
    *out = (struct rp_control_msg){.type = rp_ld32(msg), .a = rp_ld64(msg + 8), .b = rp_ld64(msg + 16)};
    return 0;
}
