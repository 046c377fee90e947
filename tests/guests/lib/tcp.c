/* See tcp.h. Section numbers are RFC 9293's. */
#include "tests/guests/lib/guest.h"
#include "tests/guests/lib/tcp.h"

#define PROTO_TCP  6
#define FIN        0x01u
#define SYN        0x02u
#define RST        0x04u
#define PSH        0x08u
#define ACK        0x10u
#define TCP_BYTES  20u
#define OUR_MSS    1460u
#define TICK_NS    1000000u
#define RTO_FIRST_NS 200000000u
#define RTO_MIN_NS   60000000u       /* longer than a peer delays its ACKs */
#define RTO_MAX_NS   UINT64_C(3200000000)
#define GIVE_UP_NS UINT64_C(120000000000)

struct segment {
	uint32_t seq, ack;
	uint32_t wnd;
	uint32_t flags;
	const uint8_t *data;
	unsigned len;
	uint16_t mss; /* of the option, or 536 (3.7.1) */
};

static bool before(uint32_t a, uint32_t b)
{
	return (int32_t)(a - b) < 0;
}

static struct rg_ledger *books(void)
{
	return &RG_STATUS->ledger;
}

static bool emit(struct rg_net *n, const struct rg_peer *to, uint16_t port, const struct segment *g)
{
	uint16_t slot;
	uint8_t *t = rg_ip_begin(n, &slot);
	unsigned head = g->flags & SYN ? TCP_BYTES + 4 : TCP_BYTES;

	if (!t)
		return false;
	rg_put16(t, port);
	rg_put16(t + 2, to->port);
	rg_put32(t + 4, g->seq);
	rg_put32(t + 8, g->ack);
	rg_put16(t + 12, head / 4 << 12 | g->flags);
	rg_put16(t + 14, g->wnd);
	rg_put32(t + 16, 0);
	if (g->flags & SYN)
		rg_put32(t + 20, 2u << 24 | 4u << 16 | OUR_MSS);
	memcpy(t + head, g->data, g->len);
	rg_put16(t + 16, rg_ip_checksum(n->ip, to->ip, PROTO_TCP, t, head + g->len));
	rg_ip_send(n, slot, to, PROTO_TCP, head + g->len);
	return true;
}

/* 3.10.7.1: a segment for no connection. */
static void refuse(struct rg_net *n, uint16_t port, const struct rg_peer *to, const struct segment *in)
{
	struct segment g = { .seq = in->ack, .flags = RST };

	if (in->flags & RST)
		return;
	if (!(in->flags & ACK)) {
		g.seq = 0;
		g.ack = in->seq + in->len + !!(in->flags & SYN) + !!(in->flags & FIN);
		g.flags = RST | ACK;
	}
	books()->tcp_resets++;
	emit(n, to, port, &g);
}

static void release(struct rg_tcp *c)
{
	if (c->state > RG_TCP_SYN_RECEIVED) {
		books()->tcp_open--;
		books()->tcp_closed++;
	}
	c->state = RG_TCP_FREE;
}

/* RFC 6298, with our own bounds. */
static uint64_t rto_ticks(const struct rg_tcp *c)
{
	uint64_t ns = c->srtt_ns ? c->srtt_ns + 4 * c->rttvar_ns : RTO_FIRST_NS;

	ns = (ns < RTO_MIN_NS ? RTO_MIN_NS : ns) << c->backoff;
	return rg_ns_to_ticks(ns < RTO_MAX_NS ? ns : RTO_MAX_NS);
}

static void take_sample(struct rg_tcp *c, uint64_t ns)
{
	if (!c->srtt_ns) {
		c->srtt_ns = ns + 1;
		c->rttvar_ns = ns / 2;
		return;
	}
	uint64_t off = ns > c->srtt_ns ? ns - c->srtt_ns : c->srtt_ns - ns;

	c->rttvar_ns = (3 * c->rttvar_ns + off) / 4;
	c->srtt_ns = (7 * c->srtt_ns + ns) / 8 + 1;
}

static bool send_segment(struct rg_tcp_server *s, struct rg_tcp *c, uint32_t seq, uint32_t flags, unsigned len)
{
	uint8_t copy[OUR_MSS];
	uint32_t window = RG_TCP_RECV_BYTES - c->recv_bytes;
	struct segment g = { .seq = seq, .ack = c->rcv_nxt, .wnd = window, .flags = flags | ACK, .data = copy, .len = len };

	for (unsigned i = 0; i < len; i++)
		copy[i] = c->send[(seq + i) % RG_TCP_SEND_BYTES];
	if (!emit(s->net, &c->peer, s->port, &g))
		return false;
	c->rcv_edge = c->rcv_nxt + window;
	c->ack_now = false;
	uint32_t end = seq + len + !!(flags & (SYN | FIN));

	if (end == seq)
		return true;
	if (before(seq, c->snd_max)) {
		books()->tcp_retransmits++;
		c->timed_tsc = 0; /* Karn: an answer to it proves nothing about time */
	} else if (!c->timed_tsc) {
		c->timed_tsc = rg_tsc();
		c->timed_seq = end;
	}
	if (before(c->snd_max, end))
		c->snd_max = end;
	if (!c->deadline)
		c->deadline = rg_tsc() + rto_ticks(c);
	return true;
}

/* Sends what the window lets through, then FIN when it is time, or a bare ACK. */
static void output(struct rg_tcp_server *s, struct rg_tcp *c)
{
	if (c->state == RG_TCP_SYN_RECEIVED) {
		if (c->snd_nxt == c->snd_una && send_segment(s, c, c->snd_nxt, SYN, 0))
			c->snd_nxt++;
		return;
	}
	while (before(c->snd_nxt, c->snd_end)) {
		uint32_t left = c->snd_end - c->snd_nxt;
		uint32_t in_flight = c->snd_nxt - c->snd_una;
		uint32_t window = c->snd_wnd > in_flight ? c->snd_wnd - in_flight : 0;
		uint32_t len = left < c->mss ? left : c->mss;

		if (!window && c->probe)
			window = 1; /* 3.8.6.1 */
		len = len < window ? len : window;
		c->probe = false;
		if (!len || !send_segment(s, c, c->snd_nxt, PSH, len))
			break;
		c->snd_nxt += len;
	}
	/* Waiting for the window to open is waiting for a timer as well. */
	if (before(c->snd_una, c->snd_end) && !c->deadline)
		c->deadline = rg_tsc() + rto_ticks(c);
	/* The first FIN waits until all is acknowledged: only then the application had room to answer everything. */
	bool closing = c->state == RG_TCP_LAST_ACK || (c->state == RG_TCP_CLOSE_WAIT && c->snd_una == c->snd_end);

	if (closing && c->snd_nxt == c->snd_end && send_segment(s, c, c->snd_nxt, FIN, 0)) {
		c->snd_nxt++;
		c->state = RG_TCP_LAST_ACK;
	}
	if (c->ack_now)
		send_segment(s, c, c->snd_nxt, 0, 0);
}

static void accept_one(struct rg_tcp_server *s, const struct rg_peer *from, const struct segment *in)
{
	for (unsigned i = 0; i < RG_TCP_CONNECTIONS; i++) {
		struct rg_tcp *c = &s->conns[i];

		if (c->state != RG_TCP_FREE)
			continue;
		uint64_t now = rg_tsc();
		uint32_t iss = (uint32_t)(now * UINT64_C(0x9e3779b97f4a7c15) >> 32);

		memset(c, 0, offsetof(struct rg_tcp, send));
		c->state = RG_TCP_SYN_RECEIVED;
		c->peer = *from;
		c->snd_una = c->snd_nxt = c->snd_max = iss;
		c->snd_end = iss + 1;
		c->snd_wnd = in->wnd;
		c->rcv_nxt = in->seq + 1;
		c->mss = in->mss < OUR_MSS ? in->mss : OUR_MSS;
		c->heard_tsc = now;
		output(s, c);
		return;
	}
	/* No room: the peer tries again. */
}

static void take_ack(struct rg_tcp *c, const struct segment *in)
{
	bool news = before(c->snd_una, in->ack) && !before(c->snd_max, in->ack);

	if (news) {
		c->snd_una = in->ack;
		if (before(c->snd_nxt, c->snd_una))
			c->snd_nxt = c->snd_una;
		c->duplicate_acks = 0;
		c->backoff = 0;
		c->heard_tsc = rg_tsc();
		if (c->timed_tsc && !before(in->ack, c->timed_seq)) {
			take_sample(c, rg_ticks_to_ns(c->heard_tsc - c->timed_tsc));
			c->timed_tsc = 0;
		}
		c->deadline = c->snd_una == c->snd_max ? 0 : c->heard_tsc + rto_ticks(c);
	} else if (in->ack == c->snd_una && !in->len && !(in->flags & FIN) && in->wnd == c->snd_wnd && c->snd_una != c->snd_max) {
		if (++c->duplicate_acks == 3)
			c->snd_nxt = c->snd_una;
	}
	if (!before(in->ack, c->snd_una) && !before(c->snd_max, in->ack))
		c->snd_wnd = in->wnd;
}

static void take_data(struct rg_tcp *c, const struct segment *in)
{
	const uint8_t *data = in->data;
	unsigned len = in->len, room = RG_TCP_RECV_BYTES - c->recv_bytes;
	uint32_t skip = c->rcv_nxt - in->seq;

	if (len || in->flags & FIN)
		c->ack_now = true;
	if (before(c->rcv_nxt, in->seq) || skip > len)
		return; /* a hole before it, or all of it old: the ACK says so */
	data += skip;
	len -= skip;
	unsigned take = len < room ? len : room;

	memcpy(c->recv + c->recv_bytes, data, take);
	c->recv_bytes += take;
	c->rcv_nxt += take;
	if (take)
		c->heard_tsc = rg_tsc();
	if (in->flags & FIN && take == len && c->state == RG_TCP_ESTABLISHED) {
		c->rcv_nxt++;
		c->state = RG_TCP_CLOSE_WAIT;
	}
}

static void established_input(struct rg_tcp_server *s, struct rg_tcp *c, const struct rg_peer *from, const struct segment *in)
{
	memcpy(c->peer.mac, from->mac, 6);
	if (in->flags & RST) {
		if (in->seq == c->rcv_nxt)
			release(c);
		return;
	}
	if (in->flags & SYN) {
		/* Again the first one: answer again; any other: RFC 5961's challenge. */
		if (c->state == RG_TCP_SYN_RECEIVED && in->seq + 1 == c->rcv_nxt)
			c->snd_nxt = c->snd_una;
		else
			c->ack_now = true;
		return;
	}
	if (!(in->flags & ACK))
		return;
	if (c->state == RG_TCP_SYN_RECEIVED) {
		if (in->ack != c->snd_una + 1) {
			refuse(s->net, s->port, from, in);
			return;
		}
		c->state = RG_TCP_ESTABLISHED;
		books()->tcp_accepted++;
		books()->tcp_open++;
	}
	take_ack(c, in);
	if (c->state == RG_TCP_LAST_ACK && c->snd_una == c->snd_end + 1) {
		release(c);
		return;
	}
	take_data(c, in);
}

/* The MSS option (3.7.1) among the options; false when they are malformed. */
static bool parse_options(const uint8_t *o, unsigned len, uint16_t *mss)
{
	for (unsigned i = 0; i < len && o[i] != 0;) {
		if (o[i] == 1) {
			i++;
			continue;
		}
		if (i + 1 >= len || o[i + 1] < 2 || i + o[i + 1] > len)
			return false;
		if (o[i] == 2 && o[i + 1] == 4)
			*mss = rg_get16(o + i + 2);
		i += o[i + 1];
	}
	return true;
}

void rg_tcp_input(struct rg_tcp_server *s, const struct rg_peer *from, const uint8_t *t, unsigned len)
{
	unsigned head = (t[12] >> 4) * 4u;
	struct segment in = { rg_get32(t + 4), rg_get32(t + 8), rg_get16(t + 14), t[13] & 0x3fu, t + head, len - head, 536 };

	if (head < TCP_BYTES || head > len || !parse_options(t + TCP_BYTES, head - TCP_BYTES, &in.mss) || in.mss < 64)
		return;
	if (rg_get16(t + 2) == s->port) {
		for (unsigned i = 0; i < RG_TCP_CONNECTIONS; i++) {
			struct rg_tcp *c = &s->conns[i];

			if (c->state != RG_TCP_FREE && c->peer.ip == from->ip && c->peer.port == from->port) {
				established_input(s, c, from, &in);
				return;
			}
		}
		if ((in.flags & (SYN | ACK | RST)) == SYN) {
			accept_one(s, from, &in);
			return;
		}
	}
	refuse(s->net, rg_get16(t + 2), from, &in);
}

static void run_timer(struct rg_tcp *c, uint64_t now)
{
	if (!c->deadline || (int64_t)(now - c->deadline) < 0)
		return;
	if (now - c->heard_tsc > rg_ns_to_ticks(GIVE_UP_NS)) {
		books()->tcp_resets++;
		release(c);
		return;
	}
	c->deadline = 0;
	c->snd_nxt = c->snd_una;
	c->probe = c->snd_wnd == 0;
	c->duplicate_acks = 0;
	if (c->backoff < 6)
		c->backoff++;
}

static void run_application(struct rg_tcp_server *s, struct rg_tcp *c)
{
	if (!c->recv_bytes || c->state == RG_TCP_SYN_RECEIVED || c->state == RG_TCP_LAST_ACK)
		return;
	unsigned used = s->input(c, c->recv, c->recv_bytes);

	if (!used)
		return;
	for (unsigned i = used; i < c->recv_bytes; i++)
		c->recv[i - used] = c->recv[i];
	c->recv_bytes -= used;
	/* 3.8.6.2.2: tell of a window that was nearly shut and is open again. */
	if (c->rcv_edge - c->rcv_nxt < OUR_MSS && RG_TCP_RECV_BYTES - c->recv_bytes >= 2 * OUR_MSS)
		c->ack_now = true;
}

void rg_tcp_turn(struct rg_tcp_server *s, uint64_t now, bool busy)
{
	bool tick = (int64_t)(now - s->tick_next) >= 0;

	if (!busy && !tick)
		return;
	if (tick)
		s->tick_next = now + rg_ns_to_ticks(TICK_NS);
	for (unsigned i = 0; i < RG_TCP_CONNECTIONS; i++) {
		struct rg_tcp *c = &s->conns[i];

		if (c->state == RG_TCP_FREE)
			continue;
		run_application(s, c);
		run_timer(c, now);
		if (c->state != RG_TCP_FREE)
			output(s, c);
	}
}

unsigned rg_tcp_room(const struct rg_tcp *c)
{
	return RG_TCP_SEND_BYTES - (c->snd_end - c->snd_una);
}

void rg_tcp_write(struct rg_tcp *c, const void *data, unsigned len)
{
	const uint8_t *from = data;

	for (unsigned i = 0; i < len; i++)
		c->send[c->snd_end++ % RG_TCP_SEND_BYTES] = from[i];
}
