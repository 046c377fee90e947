/*
 * A TCP server (RFC 9293) small enough to read: passive open, in-order data, one retransmission timer per connection (RFC 6298)
 * with go-back-N, fast retransmit, zero-window probes, passive close. No options but MSS, no congestion window: the send buffer
 * (8 KiB) is the most it ever has in flight.
 *
 *      SYN ──► SYN_RECEIVED ──ACK──► ESTABLISHED ──FIN──► CLOSE_WAIT ──all acknowledged, FIN──► LAST_ACK ──ACK──► (free)
 *                                          any state: RST, or 2 minutes without an answer ──► (free)
 *
 * One vCPU owns all connections. Sequence numbers are compared modulo 2^32.
 */
#ifndef TESTS_GUESTS_LIB_TCP_H
#define TESTS_GUESTS_LIB_TCP_H

#include "tests/guests/lib/net.h"

#define RG_TCP_CONNECTIONS 64u
#define RG_TCP_SEND_BYTES  8192u /* a power of two */
#define RG_TCP_RECV_BYTES  8192u

enum rg_tcp_state { RG_TCP_FREE, RG_TCP_SYN_RECEIVED, RG_TCP_ESTABLISHED, RG_TCP_CLOSE_WAIT, RG_TCP_LAST_ACK };

struct rg_tcp {
	enum rg_tcp_state state;
	struct rg_peer peer;
	uint32_t snd_una; /* oldest byte not acknowledged */
	uint32_t snd_nxt; /* next to send */
	uint32_t snd_max; /* beyond what was ever sent */
	uint32_t snd_end; /* beyond what the application wrote */
	uint32_t snd_wnd;
	uint32_t rcv_nxt;
	uint32_t rcv_edge; /* right edge of the window the peer was told */
	uint32_t recv_bytes; /* in recv[], not yet consumed */
	uint16_t mss;
	uint8_t duplicate_acks;
	uint8_t backoff;
	bool ack_now, probe;
	uint64_t deadline;  /* TSC of the next retransmission; 0: nothing is outstanding */
	uint64_t srtt_ns, rttvar_ns; /* RFC 6298; 0: no sample yet */
	uint64_t timed_tsc; /* when the byte before timed_seq was sent; 0: none is being timed */
	uint32_t timed_seq;
	uint64_t heard_tsc; /* last segment from the peer that moved anything */
	uint8_t send[RG_TCP_SEND_BYTES]; /* byte with sequence s at s % size, snd_una … snd_end */
	uint8_t recv[RG_TCP_RECV_BYTES];
};

struct rg_tcp_server {
	struct rg_net *net;
	uint16_t port;
	/* Consumes from the start of `data`; returns the bytes consumed. What is left comes again, with what arrives next. */
	unsigned (*input)(struct rg_tcp *c, const uint8_t *data, unsigned len);
	struct rg_tcp conns[RG_TCP_CONNECTIONS];
	uint64_t tick_next;
};

/* A segment from the network. */
void rg_tcp_input(struct rg_tcp_server *s, const struct rg_peer *from, const uint8_t *segment, unsigned len);

/* Application, timers and output of every connection; once per turn of the polling loop. `busy`: something arrived. */
void rg_tcp_turn(struct rg_tcp_server *s, uint64_t now, bool busy);

unsigned rg_tcp_room(const struct rg_tcp *c);

/* Appends to the send buffer; there must be room. */
void rg_tcp_write(struct rg_tcp *c, const void *data, unsigned len);

#endif
