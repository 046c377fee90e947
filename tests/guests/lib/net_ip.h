/* Between the device (net.c) and the protocols (net_ip.c). */
#ifndef TESTS_GUESTS_LIB_NET_IP_H
#define TESTS_GUESTS_LIB_NET_IP_H

#include "tests/guests/lib/net.h"

uint8_t *rg_frame_begin(struct rg_net *n, uint16_t *slot);
void rg_frame_send(struct rg_net *n, uint16_t slot, unsigned len);
void rg_frame_input(struct rg_net *n, const struct rg_net_ops *ops, const uint8_t *frame, unsigned len);
void rg_arp_announce(struct rg_net *n);

#endif
