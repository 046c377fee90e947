/* Ethernet, ARP (RFC 826), IPv4 (RFC 791), ICMP echo (RFC 792), UDP (RFC 768). */
#include "tests/guests/lib/guest.h"
#include "tests/guests/lib/net_ip.h"

#define ETHERTYPE_IP  0x0800
#define ETHERTYPE_ARP 0x0806
#define ARP_BYTES     28u
#define PROTO_ICMP    1
#define PROTO_TCP     6
#define PROTO_UDP     17
#define MIN_FRAME     60u

static const uint8_t broadcast[6] = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff };

static uint32_t sum(uint32_t acc, const uint8_t *p, unsigned len)
{
	for (; len > 1; len -= 2, p += 2)
		acc += rg_get16(p);
	return len ? acc + ((uint32_t)*p << 8) : acc;
}

static uint16_t fold(uint32_t acc)
{
	while (acc >> 16)
		acc = (acc & 0xffff) + (acc >> 16);
	return (uint16_t)~acc;
}

uint16_t rg_ip_checksum(uint32_t src, uint32_t dst, uint8_t protocol, const uint8_t *data, unsigned len)
{
	uint32_t acc = (src >> 16) + (src & 0xffff) + (dst >> 16) + (dst & 0xffff) + protocol + len;

	return fold(sum(acc, data, len));
}

bool rg_ip_parse(const char *text, uint32_t *ip)
{
	uint32_t v = 0, part = 0;
	unsigned dots = 0, digits = 0;

	for (;; text++) {
		if (*text >= '0' && *text <= '9' && digits < 3) {
			part = part * 10 + (uint32_t)(*text - '0');
			digits++;
		} else if ((*text == '.' && dots < 3) || *text == 0) {
			if (!digits || part > 255)
				return false;
			v = v << 8 | part;
			part = digits = 0;
			if (*text == 0)
				break;
			dots++;
		} else {
			return false;
		}
	}
	*ip = v;
	return dots == 3;
}

static void put_eth(struct rg_net *n, uint8_t *f, const uint8_t to[6], uint16_t type)
{
	memcpy(f, to, 6);
	memcpy(f + 6, n->mac, 6);
	rg_put16(f + 12, type);
}

static void send_arp(struct rg_net *n, uint16_t op, const uint8_t to_mac[6], const uint8_t target_mac[6], uint32_t target_ip)
{
	static const uint8_t head[6] = { 0, 1, 8, 0, 6, 4 }; /* Ethernet, IPv4 */
	uint16_t slot;
	uint8_t *f = rg_frame_begin(n, &slot);

	if (!f)
		return;
	put_eth(n, f, to_mac, ETHERTYPE_ARP);
	uint8_t *a = f + RG_ETH_BYTES;

	memset(a, 0, MIN_FRAME - RG_ETH_BYTES);
	memcpy(a, head, 6);
	rg_put16(a + 6, op);
	memcpy(a + 8, n->mac, 6);
	rg_put32(a + 14, n->ip);
	memcpy(a + 18, target_mac, 6);
	rg_put32(a + 24, target_ip);
	rg_frame_send(n, slot, MIN_FRAME);
}

/* RFC 5227, 3: an ARP request for the own address. */
void rg_arp_announce(struct rg_net *n)
{
	static const uint8_t nobody[6];

	send_arp(n, 1, broadcast, nobody, n->ip);
}

static void arp_input(struct rg_net *n, const uint8_t *a, unsigned len)
{
	if (len >= ARP_BYTES && rg_get16(a + 6) == 1 && rg_get32(a + 24) == n->ip && rg_get32(a + 14) != n->ip)
		send_arp(n, 2, a + 8, a + 8, rg_get32(a + 14));
}

uint8_t *rg_ip_begin(struct rg_net *n, uint16_t *slot)
{
	uint8_t *f = rg_frame_begin(n, slot);

	return f ? f + RG_ETH_BYTES + RG_IP_BYTES : NULL;
}

void rg_ip_send(struct rg_net *n, uint16_t slot, const struct rg_peer *to, uint8_t protocol, unsigned payload_bytes)
{
	uint8_t *f = n->tx_buffers + slot * 2048u + RG_NET_HDR_BYTES;
	uint8_t *h = f + RG_ETH_BYTES;
	unsigned len = RG_ETH_BYTES + RG_IP_BYTES + payload_bytes;

	put_eth(n, f, to->mac, ETHERTYPE_IP);
	h[0] = 0x45;
	h[1] = 0;
	rg_put16(h + 2, RG_IP_BYTES + payload_bytes);
	rg_put16(h + 4, n->ip_id++);
	rg_put16(h + 6, 0x4000); /* don't fragment */
	h[8] = 64;
	h[9] = protocol;
	rg_put16(h + 10, 0);
	rg_put32(h + 12, n->ip);
	rg_put32(h + 16, to->ip);
	rg_put16(h + 10, fold(sum(0, h, RG_IP_BYTES)));
	if (len < MIN_FRAME) {
		memset(f + len, 0, MIN_FRAME - len);
		len = MIN_FRAME;
	}
	rg_frame_send(n, slot, len);
}

bool rg_udp_send(struct rg_net *n, const struct rg_peer *to, uint16_t from_port, const void *data, unsigned len)
{
	uint16_t slot;
	uint8_t *u = rg_ip_begin(n, &slot);

	if (!u)
		return false;
	rg_put16(u, from_port);
	rg_put16(u + 2, to->port);
	rg_put16(u + 4, RG_UDP_BYTES + len);
	rg_put16(u + 6, 0);
	memcpy(u + RG_UDP_BYTES, data, len);
	uint16_t check = rg_ip_checksum(n->ip, to->ip, PROTO_UDP, u, RG_UDP_BYTES + len);

	rg_put16(u + 6, check ? check : 0xffff);
	rg_ip_send(n, slot, to, PROTO_UDP, RG_UDP_BYTES + len);
	return true;
}

static void icmp_input(struct rg_net *n, const struct rg_peer *from, const uint8_t *p, unsigned len)
{
	uint16_t slot;

	if (len < 8 || p[0] != 8 || fold(sum(0, p, len)) != 0 || len > RG_FRAME_BYTES - RG_ETH_BYTES - RG_IP_BYTES)
		return;
	uint8_t *r = rg_ip_begin(n, &slot);

	if (!r)
		return;
	memcpy(r, p, len);
	r[0] = 0;
	rg_put16(r + 2, 0);
	rg_put16(r + 2, fold(sum(0, r, len)));
	rg_ip_send(n, slot, from, PROTO_ICMP, len);
}

static void udp_input(struct rg_net *n, const struct rg_net_ops *ops, struct rg_peer *from, const uint8_t *u, unsigned len)
{
	if (len < RG_UDP_BYTES || rg_get16(u + 4) < RG_UDP_BYTES || rg_get16(u + 4) > len)
		return;
	len = rg_get16(u + 4);
	if (rg_get16(u + 6) && rg_ip_checksum(from->ip, n->ip, PROTO_UDP, u, len) != 0)
		return;
	from->port = rg_get16(u);
	ops->udp(n, from, rg_get16(u + 2), u + RG_UDP_BYTES, len - RG_UDP_BYTES);
}

static void ip_input(struct rg_net *n, const struct rg_net_ops *ops, const uint8_t *src_mac, const uint8_t *h, unsigned len)
{
	unsigned head = (h[0] & 15u) * 4;

	if (len < RG_IP_BYTES || h[0] >> 4 != 4 || head < RG_IP_BYTES || head > len || fold(sum(0, h, head)) != 0)
		return;
	unsigned total = rg_get16(h + 2);

	/* For us, not a fragment. */
	if (total < head || total > len || rg_get32(h + 16) != n->ip || rg_get16(h + 6) & 0x3fff)
		return;
	struct rg_peer from = { .ip = rg_get32(h + 12) };
	const uint8_t *payload = h + head;
	unsigned payload_bytes = total - head;

	memcpy(from.mac, src_mac, 6);
	switch (h[9]) {
	case PROTO_ICMP:
		icmp_input(n, &from, payload, payload_bytes);
		break;
	case PROTO_UDP:
		udp_input(n, ops, &from, payload, payload_bytes);
		break;
	case PROTO_TCP:
		if (payload_bytes >= 20 && rg_ip_checksum(from.ip, n->ip, PROTO_TCP, payload, payload_bytes) == 0) {
			from.port = rg_get16(payload);
			ops->tcp(n, &from, payload, payload_bytes);
		}
		break;
	default:
		break;
	}
}

void rg_frame_input(struct rg_net *n, const struct rg_net_ops *ops, const uint8_t *frame, unsigned len)
{
	if (len < RG_ETH_BYTES + RG_IP_BYTES)
		return;
	if (rg_get16(frame + 12) == ETHERTYPE_ARP)
		arp_input(n, frame + RG_ETH_BYTES, len - RG_ETH_BYTES);
	else if (rg_get16(frame + 12) == ETHERTYPE_IP && memcmp(frame, n->mac, 6) == 0)
		ip_input(n, ops, frame + 6, frame + RG_ETH_BYTES, len - RG_ETH_BYTES);
}
