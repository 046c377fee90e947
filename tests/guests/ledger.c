/*
 * ledger: counts requests that come over the network, and keeps a book of every one it acknowledged.
 *
 *   ip=10.0.0.2   port=7000 (TCP and UDP)   log=… as everywhere   entries=1M: size of the book, a ring
 *   announce=20ms: how often the device's announce bit is looked at (an exit each), 0: never
 *
 * One request per line, one answer per line; over UDP one request per datagram:
 *
 *   ADD id       OK id number         number: 1, 2, … over all clients; the entry is in the book before the answer is on its way
 *   GET          COUNT number hash    entries so far, running hash in hex (rg_ledger_hash() in status.h)
 *   LOG number   ENTRY number id
 *   else         ERR text
 *
 * A TCP client's ADD is counted exactly once per line sent. Over UDP an ADD with the same id as this peer's last one is the same ADD,
 * asked again because the answer was lost: it gets the same number.
 */
#include "tests/guests/lib/guest.h"
#include "tests/guests/lib/net.h"
#include "tests/guests/lib/tcp.h"

#define ANSWER_BYTES 96u
#define LINE_BYTES   128u
#define UDP_PEERS    64u
#define BUDGET       128u

const uint32_t guest_kind = RG_KIND_LEDGER;

/* The last ADD of a UDP peer, so that it can be asked again. */
struct udp_peer {
	uint32_t ip;
	uint16_t port;
	uint64_t id, number;
};

static struct rg_net net;
static struct rg_tcp_server *server;
static struct rg_ledger_entry *book;
static struct udp_peer udp_peers[UDP_PEERS];
static unsigned udp_next;

static uint64_t append(uint64_t id, const struct rg_peer *peer, uint8_t protocol)
{
	struct rg_ledger *l = &RG_STATUS->ledger;
	uint64_t number = l->count + 1;

	book[l->count % l->log_entries] =
		(struct rg_ledger_entry){ number, id, (uint64_t)peer->ip << 32 | (uint64_t)peer->port << 16 | protocol, rg_tsc() };
	l->hash = rg_ledger_hash(l->hash, number, id);
	rg_store(&l->count, number);
	RG_VCPU(0)->iterations++;
	return number;
}

static bool parse_number(const char *p, uint64_t *v)
{
	*v = 0;
	if (!*p)
		return false;
	for (; *p >= '0' && *p <= '9'; p++)
		*v = *v * 10 + (uint64_t)(*p - '0');
	return *p == 0;
}

static uint64_t add_udp(uint64_t id, const struct rg_peer *peer)
{
	for (unsigned i = 0; i < UDP_PEERS; i++) {
		struct udp_peer *u = &udp_peers[i];

		if (u->ip != peer->ip || u->port != peer->port)
			continue;
		if (u->id != id) {
			u->number = append(id, peer, 17);
			u->id = id;
		}
		return u->number;
	}
	struct udp_peer *u = &udp_peers[udp_next++ % UDP_PEERS];

	*u = (struct udp_peer){ peer->ip, peer->port, id, append(id, peer, 17) };
	return u->number;
}

/* One request line, without its end, into an answer line; returns the answer's length. */
static unsigned answer(const char *line, const struct rg_peer *peer, bool udp, char out[ANSWER_BYTES])
{
	const struct rg_ledger *l = &RG_STATUS->ledger;
	uint64_t v;

	if (memcmp(line, "ADD ", 4) == 0 && parse_number(line + 4, &v)) {
		uint64_t number = udp ? add_udp(v, peer) : append(v, peer, 6);

		return (unsigned)rg_format(out, ANSWER_BYTES, "OK %lu %lu\n", v, number);
	}
	if (memcmp(line, "GET", 4) == 0)
		return (unsigned)rg_format(out, ANSWER_BYTES, "COUNT %lu %lx\n", l->count, l->hash);
	if (memcmp(line, "LOG ", 4) == 0 && parse_number(line + 4, &v)) {
		if (v < 1 || v > l->count || l->count - v >= l->log_entries)
			return (unsigned)rg_format(out, ANSWER_BYTES, "ERR no entry %lu in the book\n", v);
		return (unsigned)rg_format(out, ANSWER_BYTES, "ENTRY %lu %lu\n", v, book[(v - 1) % l->log_entries].id);
	}
	return (unsigned)rg_format(out, ANSWER_BYTES, "ERR not a request\n");
}

/* Copies a line of at most LINE_BYTES - 1 characters out of `data`; the rest of `line` is zeros, so that memcmp may look at it. */
static void copy_line(char line[LINE_BYTES], const uint8_t *data, unsigned len)
{
	memset(line, 0, LINE_BYTES);
	while (len && (data[len - 1] == '\r' || data[len - 1] == '\n'))
		len--;
	memcpy(line, data, len < LINE_BYTES - 1 ? len : LINE_BYTES - 1);
}

static unsigned tcp_lines(struct rg_tcp *c, const uint8_t *data, unsigned len)
{
	char line[LINE_BYTES], out[ANSWER_BYTES];
	unsigned used = 0;

	for (unsigned i = 0; i < len; i++) {
		if (data[i] != '\n' && i - used < LINE_BYTES)
			continue;
		if (rg_tcp_room(c) < ANSWER_BYTES)
			break;
		copy_line(line, data + used, i - used);
		rg_tcp_write(c, out, answer(line, &c->peer, false, out));
		RG_STATUS->ledger.tcp_requests++;
		used = i + 1;
	}
	return used;
}

static void on_udp(struct rg_net *n, const struct rg_peer *from, uint16_t port, const uint8_t *data, unsigned len)
{
	char line[LINE_BYTES], out[ANSWER_BYTES];

	if (port != server->port)
		return;
	copy_line(line, data, len);
	RG_STATUS->ledger.udp_requests++;
	rg_udp_send(n, from, port, out, answer(line, from, true, out));
}

static void on_tcp(struct rg_net *n, const struct rg_peer *from, const uint8_t *segment, unsigned len)
{
	(void)n;
	rg_tcp_input(server, from, segment, len);
}

static void other_vcpu(unsigned cpu)
{
	while (!rg_over(rg_beat(RG_VCPU(cpu))))
		;
}

void guest_main(void)
{
	static const char *const keys[] = { "ip", "port", "entries", "announce", NULL };
	static const struct rg_net_ops ops = { on_udp, on_tcp };
	struct rg_ledger *l = &RG_STATUS->ledger;
	unsigned cpus = (unsigned)rg_cmdline_number("smp", 1);
	char text[32] = "10.0.0.2";
	uint32_t ip;

	rg_cmdline_keys(keys);
	rg_cmdline_text("ip", text, sizeof(text));
	if (!rg_ip_parse(text, &ip))
		rg_fail(RG_ERR_CMDLINE, NULL, "command line: ip=%s is not an address", text);
	memset(l, 0, sizeof(*l));
	l->log_entries = rg_cmdline_size("entries", 1 << 20);
	if (!l->log_entries)
		rg_fail(RG_ERR_CMDLINE, NULL, "command line: entries=0");
	book = rg_alloc(l->log_entries * sizeof(*book), 4096, false);
	l->log_gpa = (uint64_t)book;
	server = rg_alloc(sizeof(*server), 4096, true);
	server->net = &net;
	server->port = (uint16_t)rg_cmdline_number("port", 7000);
	server->input = tcp_lines;
	rg_net_init(&net, ip, rg_ns_to_ticks(rg_cmdline_time_ns("announce", 20000000)));
	if (cpus > 1)
		rg_smp_start(cpus, other_vcpu);
	rg_running();
	rg_log("ledger: %s port %u", text, server->port);
	for (;;) {
		uint64_t now = rg_beat(RG_VCPU(0));

		if (rg_over(now))
			return;
		unsigned frames = rg_net_poll(&net, &ops, BUDGET);

		rg_tcp_turn(server, now, frames != 0);
		rg_net_flush(&net);
	}
}
