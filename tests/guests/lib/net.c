/* The device: VIRTIO 1.1, 5.1; no offloads are negotiated, so every frame is whole and has its checksums. */
#include "tests/guests/lib/guest.h"
#include "tests/guests/lib/net.h"
#include "tests/guests/lib/net_ip.h"

#define F_MAC            (UINT64_C(1) << 5)
#define F_STATUS         (UINT64_C(1) << 16)
#define F_CTRL_VQ        (UINT64_C(1) << 17)
#define F_GUEST_ANNOUNCE (UINT64_C(1) << 21)
#define CONFIG_STATUS    6
#define STATUS_ANNOUNCE  2
#define CTRL_ANNOUNCE    3
#define CTRL_ANNOUNCE_ACK 0
#define BUFFER_BYTES     2048u
#define SLOTS            256

static void post_rx(struct rg_net *n, uint16_t slot)
{
	*rg_vq_desc(&n->rx, slot) = (struct rg_desc){ (uint64_t)n->rx_buffers + slot * BUFFER_BYTES, BUFFER_BYTES, RG_DESC_WRITE, 0 };
	rg_vq_post(&n->rx, slot);
}

void rg_net_init(struct rg_net *n, uint32_t ip, uint64_t config_every)
{
	struct rg_ledger *l = &RG_STATUS->ledger;

	rg_virtio_init(&n->dev, RG_VIRTIO_NET, 0, F_MAC, F_STATUS | F_CTRL_VQ | F_GUEST_ANNOUNCE);
	for (unsigned i = 0; i < 6; i++)
		n->mac[i] = l->mac[i] = rg_virtio_config8(&n->dev, i);
	n->ip = l->ip = ip;
	rg_virtio_queue(&n->dev, &n->rx, 0, SLOTS, 1);
	rg_virtio_queue(&n->dev, &n->tx, 1, SLOTS, 1);
	if (n->dev.features & F_CTRL_VQ)
		rg_virtio_queue(&n->dev, &n->ctl, 2, 1, 4);
	n->rx_buffers = rg_alloc(n->rx.slots * BUFFER_BYTES, 4096, true);
	n->tx_buffers = rg_alloc(n->tx.slots * BUFFER_BYTES, 4096, true);
	n->ack = rg_alloc(64, 64, true);
	for (uint16_t i = 0; i < n->tx.slots; i++)
		n->tx_free[n->tx_free_count++] = i;
	rg_virtio_ready(&n->dev);
	for (uint16_t i = 0; i < n->rx.slots; i++)
		post_rx(n, i);
	rg_vq_kick(&n->rx);
	if ((n->dev.features & (F_STATUS | F_CTRL_VQ | F_GUEST_ANNOUNCE)) == (F_STATUS | F_CTRL_VQ | F_GUEST_ANNOUNCE))
		n->config_every = config_every;
	n->config_next = rg_tsc();
	rg_arp_announce(n);
	rg_net_flush(n);
}

uint8_t *rg_frame_begin(struct rg_net *n, uint16_t *slot)
{
	if (!n->tx_free_count)
		rg_net_flush(n);
	if (!n->tx_free_count) {
		RG_STATUS->ledger.tx_dropped++;
		return NULL;
	}
	*slot = n->tx_free[--n->tx_free_count];
	uint8_t *hdr = n->tx_buffers + *slot * BUFFER_BYTES;

	memset(hdr, 0, RG_NET_HDR_BYTES);
	return hdr + RG_NET_HDR_BYTES;
}

void rg_frame_send(struct rg_net *n, uint16_t slot, unsigned len)
{
	*rg_vq_desc(&n->tx, slot) = (struct rg_desc){ (uint64_t)n->tx_buffers + slot * BUFFER_BYTES, RG_NET_HDR_BYTES + len, 0, 0 };
	rg_vq_post(&n->tx, slot);
	RG_STATUS->ledger.tx_frames++;
}

/* 5.1.6.5.4: after a failover or migration the device asks for gratuitous packets, and wants to hear that they were sent. */
static void look_at_status(struct rg_net *n, uint64_t now)
{
	if (!n->config_every || (int64_t)(now - n->config_next) < 0)
		return;
	n->config_next = now + n->config_every;
	if (!(rg_virtio_config16(&n->dev, CONFIG_STATUS) & STATUS_ANNOUNCE) || n->ctl.busy[0])
		return;
	rg_arp_announce(n);
	RG_STATUS->ledger.announces++;
	struct rg_desc *d = rg_vq_desc(&n->ctl, 0);

	n->ack[0] = CTRL_ANNOUNCE;
	n->ack[1] = CTRL_ANNOUNCE_ACK;
	d[0] = (struct rg_desc){ (uint64_t)n->ack, 2, RG_DESC_NEXT, 1 };
	d[1] = (struct rg_desc){ (uint64_t)n->ack + 32, 1, RG_DESC_WRITE, 0 };
	rg_vq_post(&n->ctl, 0);
	rg_vq_kick(&n->ctl);
}

unsigned rg_net_poll(struct rg_net *n, const struct rg_net_ops *ops, unsigned budget)
{
	unsigned done = 0;
	uint16_t slot;
	uint32_t len;

	look_at_status(n, rg_tsc());
	if (n->dev.features & F_CTRL_VQ)
		rg_vq_poll(&n->ctl, &slot, &len);
	for (; done < budget && rg_vq_poll(&n->rx, &slot, &len); done++) {
		if (len > BUFFER_BYTES)
			rg_fail(RG_ERR_PROTOCOL, NULL, "virtio-net wrote %u bytes into a buffer of %u", len, BUFFER_BYTES);
		RG_STATUS->ledger.rx_frames++;
		if (len > RG_NET_HDR_BYTES)
			rg_frame_input(n, ops, n->rx_buffers + slot * BUFFER_BYTES + RG_NET_HDR_BYTES, len - RG_NET_HDR_BYTES);
		post_rx(n, slot);
	}
	return done;
}

void rg_net_flush(struct rg_net *n)
{
	uint16_t slot;
	uint32_t len;

	while (rg_vq_poll(&n->tx, &slot, &len))
		n->tx_free[n->tx_free_count++] = slot;
	rg_vq_kick(&n->tx);
	rg_vq_kick(&n->rx);
}
