/*
 * A polled virtio-net device and just enough IPv4 on it: ARP, ICMP echo, UDP, and TCP (tcp.h). Frames go back to the MAC address they
 * came from, so there is no routing table and no ARP cache. One vCPU owns all of it.
 */
#ifndef TESTS_GUESTS_LIB_NET_H
#define TESTS_GUESTS_LIB_NET_H

#include "tests/guests/lib/virtio.h"

#define RG_FRAME_BYTES   1514u
#define RG_NET_HDR_BYTES 12u /* struct virtio_net_hdr with num_buffers, VIRTIO 1.1, 5.1.6 */
#define RG_ETH_BYTES     14u
#define RG_IP_BYTES      20u
#define RG_UDP_BYTES     8u

struct rg_net {
	struct rg_virtio dev;
	struct rg_vq rx, tx, ctl;
	uint8_t *rx_buffers, *tx_buffers; /* 2 KiB per slot */
	uint16_t tx_free[256];
	uint16_t tx_free_count;
	uint8_t mac[6];
	uint32_t ip; /* host order */
	uint16_t ip_id;
	uint64_t config_next, config_every; /* TSC: when the configuration's status is looked at */
	uint8_t *ack; /* the announce acknowledgement's three buffers */
};

/* The other end of a datagram or connection. */
struct rg_peer {
	uint8_t mac[6];
	uint16_t port;
	uint32_t ip;
};

/* What the owner does with what arrives; `data` is inside the receive buffer, valid during the call. */
struct rg_net_ops {
	void (*udp)(struct rg_net *n, const struct rg_peer *from, uint16_t port, const uint8_t *data, unsigned len);
	void (*tcp)(struct rg_net *n, const struct rg_peer *from, const uint8_t *segment, unsigned len);
};

/* Device 0 of the machine, address `ip`; looks at the announce bit every `config_every` ticks, 0: never. Sends a gratuitous ARP. */
void rg_net_init(struct rg_net *n, uint32_t ip, uint64_t config_every);

/* Handles what has arrived, `budget` frames at most; returns how many it was. Call rg_net_flush() afterwards. */
unsigned rg_net_poll(struct rg_net *n, const struct rg_net_ops *ops, unsigned budget);

/* Takes sent buffers back and tells the device of new ones: at most one exit per queue. */
void rg_net_flush(struct rg_net *n);

/* Room for a payload of an IPv4 packet of `protocol`; NULL when all buffers are on their way. Then rg_ip_send() must follow. */
uint8_t *rg_ip_begin(struct rg_net *n, uint16_t *slot);
void rg_ip_send(struct rg_net *n, uint16_t slot, const struct rg_peer *to, uint8_t protocol, unsigned payload_bytes);

/* False: no buffer, nothing sent. */
bool rg_udp_send(struct rg_net *n, const struct rg_peer *to, uint16_t from_port, const void *data, unsigned len);

/* RFC 1071 over the pseudo header and `len` bytes at `data`; 0 over a packet whose checksum is right. */
uint16_t rg_ip_checksum(uint32_t src, uint32_t dst, uint8_t protocol, const uint8_t *data, unsigned len);

/* "10.0.0.2" in host order; false when it is not an address. */
bool rg_ip_parse(const char *text, uint32_t *ip);

static inline uint16_t rg_get16(const uint8_t *p) { return (uint16_t)(p[0] << 8 | p[1]); }
static inline uint32_t rg_get32(const uint8_t *p) { return (uint32_t)rg_get16(p) << 16 | rg_get16(p + 2); }

static inline void rg_put16(uint8_t *p, uint32_t v)
{
	p[0] = (uint8_t)(v >> 8);
	p[1] = (uint8_t)v;
}

static inline void rg_put32(uint8_t *p, uint32_t v)
{
	rg_put16(p, v >> 16);
	rg_put16(p + 2, v);
}

#endif
