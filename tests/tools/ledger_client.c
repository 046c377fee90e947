/*
 * ledger-client: asks the ledger guest (tests/guests/ledger.c) to count, keeps every acknowledgement, and proves at the end that
 * nothing acknowledged was lost, changed or counted twice.
 *
 *     ledger-client [options] ADDRESS
 *       -p PORT      default 7000
 *       -c N         connections (1)
 *       -d N         requests in flight per connection (1)
 *       -s SECONDS   how long, fractions allowed (5); or
 *       -n N         how many requests in all
 *       -i US        pause between an answer and the next request of a connection (0)
 *       -u           UDP: a request without an answer is repeated every 200 ms (one in flight per socket)
 *       -l FILE      log: one line per acknowledgement: sent (ns, CLOCK_MONOTONIC), latency ns, id, number
 *       -t SECONDS   give up when nothing at all has been answered for so long (30)
 *       -w SECONDS   keep trying to connect for so long (10)
 *       -o           other clients write too: the ledger may count more than this client's requests
 *       -v           says twice a second how many are acknowledged: `acknowledged N`
 *
 * SIGTERM and SIGINT end the writing before its time; what was acknowledged is verified all the same.
 * A TCP connection that breaks is a failure: the guest's connections have to survive whatever happens to its host.
 * Prints `name value` lines on stdout. Exit codes: 0 proven · 1 something was lost, doubled or broken · 2 usage.
 */
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define CONNECTIONS_MAX 64
#define DEPTH_MAX       64
#define LINE_MAX_BYTES  128
#define UDP_RETRY_NS    200000000
#define VERIFY_DEPTH    32u

struct options {
	struct sockaddr_in to;
	unsigned connections, depth;
	uint64_t requests, run_ns, pause_ns, stall_ns, connect_ns;
	bool udp, others, verbose;
	FILE *log;
};

/* One request on its way. */
struct request {
	uint64_t id, sent_ns, asked_ns; /* asked: last time it was put on the wire */
};

struct connection {
	int fd;
	struct request window[DEPTH_MAX]; /* ring: answers come in order */
	unsigned first, in_flight;
	uint64_t next_ns; /* not before */
	char in[4096];
	size_t in_bytes;
};

/* A signal handler has no other way to say it. */
static atomic_bool ended;

static void on_end(int number)
{
	(void)number;
	ended = 1;
}

struct ack {
	uint64_t id, number, latency_ns;
};

struct client {
	struct options o;
	struct connection conns[CONNECTIONS_MAX];
	struct ack *acks;
	size_t acks_count, acks_room;
	uint64_t next_id, sent, repeated;
	uint64_t last_answer_ns, max_silence_ns;
	uint64_t count_before;
};

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static int try_connect(const struct options *o, int timeout_ms)
{
	int fd = socket(AF_INET, (o->udp ? SOCK_DGRAM : SOCK_STREAM) | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	int one = 1, error = 0;
	socklen_t len = sizeof(error);

	if (fd < 0)
		err(1, "socket");
	if (!o->udp)
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	if (connect(fd, (const struct sockaddr *)&o->to, sizeof(o->to)) == 0)
		return fd;
	error = errno;
	if (error == EINPROGRESS) {
		struct pollfd p = { .fd = fd, .events = POLLOUT };

		error = poll(&p, 1, timeout_ms) == 1 ? 0 : ETIMEDOUT;
		if (!error)
			getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &len);
	}
	if (!error)
		return fd;
	close(fd);
	errno = error;
	return -1;
}

static int open_connection(const struct options *o)
{
	uint64_t until = now_ns() + o->connect_ns;

	for (;;) {
		int fd = try_connect(o, 1500);

		if (fd >= 0)
			return fd;
		if (now_ns() >= until)
			err(1, "connect");
		nanosleep(&(struct timespec){ .tv_nsec = 20000000 }, NULL);
	}
}

static void put_line(const struct connection *c, const char *line)
{
	ssize_t n = send(c->fd, line, strlen(line), MSG_NOSIGNAL);

	if (n == (ssize_t)strlen(line) || (n < 0 && errno == ECONNREFUSED))
		return;
	errx(1, "connection broken: %s", n < 0 ? strerror(errno) : "short write");
}

/* One complete line out of the connection's buffer. */
static bool take_line(struct connection *c, char line[LINE_MAX_BYTES])
{
	char *end = memchr(c->in, '\n', c->in_bytes);

	if (!end)
		return false;
	size_t n = (size_t)(end - c->in);

	if (n >= LINE_MAX_BYTES)
		errx(1, "answer of %zu bytes", n);
	memcpy(line, c->in, n);
	line[n] = 0;
	c->in_bytes -= n + 1;
	memmove(c->in, end + 1, c->in_bytes);
	return true;
}

static void receive(struct connection *c)
{
	ssize_t n = recv(c->fd, c->in + c->in_bytes, sizeof(c->in) - c->in_bytes, MSG_DONTWAIT);

	if (n > 0)
		c->in_bytes += (size_t)n;
	else if (n == 0)
		errx(1, "connection closed by the guest");
	else if (errno != EAGAIN && errno != ECONNREFUSED)
		err(1, "connection broken");
}

static bool wait_readable(const struct connection *c, int timeout_ms)
{
	struct pollfd p = { .fd = c->fd, .events = POLLIN };

	return poll(&p, 1, timeout_ms) == 1;
}

/* Asks and waits for the one answer, outside the measured part. Over UDP, answers to what was repeated before are passed over. */
static void ask(struct client *k, struct connection *c, const char *request, const char *begins, char line[LINE_MAX_BYTES])
{
	uint64_t until = now_ns() + k->o.stall_ns;

	put_line(c, request);
	for (;;) {
		if (take_line(c, line)) {
			if (!k->o.udp || strncmp(line, begins, strlen(begins)) == 0 || strncmp(line, "ERR", 3) == 0)
				return;
			continue;
		}
		if (wait_readable(c, k->o.udp ? 200 : 1000))
			receive(c);
		else if (k->o.udp)
			put_line(c, request);
		if (now_ns() > until)
			errx(1, "no answer to %s", request);
	}
}

static void get_count(struct client *k, uint64_t *count, uint64_t *hash)
{
	char line[LINE_MAX_BYTES];

	ask(k, &k->conns[0], "GET\n", "COUNT ", line);
	if (sscanf(line, "COUNT %" SCNu64 " %" SCNx64, count, hash) != 2)
		errx(1, "GET answered: %s", line);
}

static void send_add(const struct connection *c, uint64_t id)
{
	char line[LINE_MAX_BYTES];

	snprintf(line, sizeof(line), "ADD %" PRIu64 "\n", id);
	put_line(c, line);
}

static void start_requests(struct client *k, struct connection *c, uint64_t now, bool more)
{
	while (more && c->in_flight < k->o.depth && now >= c->next_ns && (!k->o.requests || k->sent < k->o.requests)) {
		struct request *r = &c->window[(c->first + c->in_flight++) % DEPTH_MAX];

		*r = (struct request){ k->next_id++, now_ns(), 0 };
		r->asked_ns = r->sent_ns;
		k->sent++;
		send_add(c, r->id);
	}
	if (k->o.udp && c->in_flight && now > c->window[c->first].asked_ns + UDP_RETRY_NS) {
		c->window[c->first].asked_ns = now;
		k->repeated++;
		send_add(c, c->window[c->first].id);
	}
}

static void keep_ack(struct client *k, const struct request *r, uint64_t number, uint64_t now)
{
	if (k->acks_count == k->acks_room) {
		k->acks_room = k->acks_room ? 2 * k->acks_room : 4096;
		k->acks = realloc(k->acks, k->acks_room * sizeof(*k->acks));
		if (!k->acks)
			errx(1, "out of memory");
	}
	k->acks[k->acks_count++] = (struct ack){ r->id, number, now - r->sent_ns };
	if (k->o.log)
		fprintf(k->o.log, "%" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", r->sent_ns, now - r->sent_ns, r->id, number);
	if (now - k->last_answer_ns > k->max_silence_ns)
		k->max_silence_ns = now - k->last_answer_ns;
	k->last_answer_ns = now;
}

static void take_answers(struct client *k, struct connection *c)
{
	char line[LINE_MAX_BYTES];

	while (take_line(c, line)) {
		struct request *r = &c->window[c->first];
		uint64_t id, number, now = now_ns();

		if (sscanf(line, "OK %" SCNu64 " %" SCNu64, &id, &number) != 2)
			errx(1, "ADD answered: %s", line);
		if (!c->in_flight || id != r->id) {
			if (k->o.udp)
				continue; /* the answer to a repeated request, come twice */
			errx(1, "answer for id %" PRIu64 ", waiting for %" PRIu64, id, c->in_flight ? r->id : 0);
		}
		keep_ack(k, r, number, now);
		c->first = (c->first + 1) % DEPTH_MAX;
		c->in_flight--;
		c->next_ns = now + k->o.pause_ns;
	}
}

static void run(struct client *k)
{
	uint64_t start = now_ns(), end = start + k->o.run_ns, say = start;
	struct pollfd p[CONNECTIONS_MAX];

	k->last_answer_ns = start;
	for (;;) {
		uint64_t now = now_ns();
		bool more = !ended && (k->o.requests ? k->sent < k->o.requests : now < end);
		unsigned waiting = 0;

		if (k->o.verbose && now >= say) {
			printf("acknowledged %zu\n", k->acks_count);
			fflush(stdout);
			say = now + 500000000;
		}

		for (unsigned i = 0; i < k->o.connections; i++) {
			start_requests(k, &k->conns[i], now, more);
			waiting += k->conns[i].in_flight;
			p[i] = (struct pollfd){ .fd = k->conns[i].fd, .events = POLLIN };
		}
		if (!more && !waiting)
			return;
		/* A pause shorter than poll's millisecond is waited out by polling. */
		if (poll(p, k->o.connections, k->o.pause_ns ? (k->o.pause_ns >= 2000000 ? 1 : 0) : 50) < 0 && errno != EINTR)
			err(1, "poll");
		for (unsigned i = 0; i < k->o.connections; i++)
			if (p[i].revents) {
				receive(&k->conns[i]);
				take_answers(k, &k->conns[i]);
			}
		if (waiting && now_ns() - k->last_answer_ns > k->o.stall_ns)
			errx(1, "nothing answered for %.1f s, after %zu acknowledgements", (double)k->o.stall_ns / 1e9, k->acks_count);
	}
}

static void expect_entry(const struct ack *a, const char *line)
{
	uint64_t number, id;

	if (sscanf(line, "ENTRY %" SCNu64 " %" SCNu64, &number, &id) != 2 || number != a->number)
		errx(1, "LOST: id %" PRIu64 " was acknowledged as number %" PRIu64 "; the ledger says: %s", a->id, a->number, line);
	if (id != a->id)
		errx(1, "LOST: number %" PRIu64 " was acknowledged for id %" PRIu64 ", the ledger has id %" PRIu64, number, a->id, id);
}

/* Asks for every acknowledged entry, VERIFY_DEPTH at a time over TCP. */
static void verify_entries(struct client *k)
{
	struct connection *c = &k->conns[0];
	char line[LINE_MAX_BYTES];
	size_t asked = 0, done = 0;
	uint64_t until = now_ns() + k->o.stall_ns;
	size_t depth = k->o.udp ? 1 : VERIFY_DEPTH;

	while (done < k->acks_count) {
		if (k->o.udp) {
			char request[LINE_MAX_BYTES], begins[LINE_MAX_BYTES];

			snprintf(request, sizeof(request), "LOG %" PRIu64 "\n", k->acks[done].number);
			snprintf(begins, sizeof(begins), "ENTRY %" PRIu64 " ", k->acks[done].number);
			ask(k, c, request, begins, line);
			expect_entry(&k->acks[done++], line);
			continue;
		}
		for (; asked < k->acks_count && asked - done < depth; asked++) {
			snprintf(line, sizeof(line), "LOG %" PRIu64 "\n", k->acks[asked].number);
			put_line(c, line);
		}
		if (wait_readable(c, 1000))
			receive(c);
		while (done < asked && take_line(c, line)) {
			expect_entry(&k->acks[done++], line);
			until = now_ns() + k->o.stall_ns;
		}
		if (now_ns() > until)
			errx(1, "no answer while verifying, %zu of %zu checked", done, k->acks_count);
	}
}

static int by_number(const void *a, const void *b)
{
	const struct ack *x = a, *y = b;

	return x->number < y->number ? -1 : x->number > y->number;
}

static int by_latency(const void *a, const void *b)
{
	const struct ack *x = a, *y = b;

	return x->latency_ns < y->latency_ns ? -1 : x->latency_ns > y->latency_ns;
}

static void verify(struct client *k)
{
	uint64_t count, hash;

	verify_entries(k);
	qsort(k->acks, k->acks_count, sizeof(*k->acks), by_number);
	for (size_t i = 1; i < k->acks_count; i++)
		if (k->acks[i].number == k->acks[i - 1].number)
			errx(1, "DOUBLED: number %" PRIu64 " was given to ids %" PRIu64 " and %" PRIu64, k->acks[i].number, k->acks[i - 1].id, k->acks[i].id);
	get_count(k, &count, &hash);
	if (count - k->count_before < k->acks_count || (!k->o.others && count - k->count_before != k->acks_count))
		errx(1, "%s: %zu requests acknowledged, the ledger counted %" PRIu64, count - k->count_before < k->acks_count ? "LOST" : "DOUBLED",
		    k->acks_count, count - k->count_before);
}

static void report(struct client *k, uint64_t elapsed_ns)
{
	static const double points[] = { 50, 90, 99, 99.9, 100 };

	qsort(k->acks, k->acks_count, sizeof(*k->acks), by_latency);
	printf("acknowledged %zu\nseconds %.3f\nper_second %.0f\nreconnects 0\nrepeated %" PRIu64 "\nlongest_silence_us %.1f\n", k->acks_count,
	       (double)elapsed_ns / 1e9, (double)k->acks_count * 1e9 / (double)elapsed_ns, k->repeated, (double)k->max_silence_ns / 1e3);
	for (unsigned i = 0; k->acks_count && i < sizeof(points) / sizeof(points[0]); i++) {
		size_t at = (size_t)(points[i] / 100 * (double)(k->acks_count - 1) + 0.5);

		printf("latency_p%g_us %.1f\n", points[i], (double)k->acks[at].latency_ns / 1e3);
	}
	puts("verified yes");
}

static double number_arg(const char *text)
{
	char *end;
	double v = strtod(text, &end);

	if (*end || end == text || v < 0)
		errx(2, "not a number: %s", text);
	return v;
}

static void parse_args(struct options *o, int argc, char **argv)
{
	int c;

	*o = (struct options){ .connections = 1, .depth = 1, .run_ns = 5000000000, .stall_ns = 30000000000, .connect_ns = 10000000000 };
	o->to = (struct sockaddr_in){ .sin_family = AF_INET, .sin_port = htons(7000) };
	while ((c = getopt(argc, argv, "p:c:d:s:n:i:ul:t:w:ov")) != -1) {
		switch (c) {
		case 'p': o->to.sin_port = htons((uint16_t)number_arg(optarg)); break;
		case 'c': o->connections = (unsigned)number_arg(optarg); break;
		case 'd': o->depth = (unsigned)number_arg(optarg); break;
		case 's': o->run_ns = (uint64_t)(number_arg(optarg) * 1e9); break;
		case 'n': o->requests = (uint64_t)number_arg(optarg); break;
		case 'i': o->pause_ns = (uint64_t)(number_arg(optarg) * 1e3); break;
		case 'u': o->udp = true; break;
		case 't': o->stall_ns = (uint64_t)(number_arg(optarg) * 1e9); break;
		case 'w': o->connect_ns = (uint64_t)(number_arg(optarg) * 1e9); break;
		case 'o': o->others = true; break;
		case 'v': o->verbose = true; break;
		case 'l':
			o->log = fopen(optarg, "we");
			if (!o->log)
				err(2, "%s", optarg);
			break;
		default:
			errx(2, "usage: ledger-client [-p port] [-c connections] [-d depth] [-s seconds | -n requests] [-i us] [-u] [-l log] [-t s] [-w s] [-o] [-v] ADDRESS");
		}
	}
	if (optind + 1 != argc || inet_pton(AF_INET, argv[optind], &o->to.sin_addr) != 1)
		errx(2, "want one IPv4 address");
	if (o->connections < 1 || o->connections > CONNECTIONS_MAX || o->depth < 1 || o->depth > DEPTH_MAX)
		errx(2, "connections from 1 to %d, depth from 1 to %d", CONNECTIONS_MAX, DEPTH_MAX);
	if (o->udp)
		o->depth = 1;
}

int main(int argc, char **argv)
{
	static struct client k;
	uint64_t hash;

	parse_args(&k.o, argc, argv);
	signal(SIGTERM, on_end);
	signal(SIGINT, on_end);
	/* Ids differ from run to run, so that an entry of another run cannot pass for one of this. */
	k.next_id = ((uint64_t)time(NULL) & 0xffffff) << 36 | ((uint64_t)getpid() & 0xffff) << 20;
	for (unsigned i = 0; i < k.o.connections; i++)
		k.conns[i].fd = open_connection(&k.o);
	get_count(&k, &k.count_before, &hash);
	uint64_t start = now_ns();

	run(&k);
	uint64_t elapsed = now_ns() - start;

	if (k.o.log && fclose(k.o.log) != 0)
		err(1, "writing the log");
	verify(&k);
	report(&k, elapsed);
	free(k.acks);
	for (unsigned i = 0; i < k.o.connections; i++)
		close(k.conns[i].fd);
	return 0;
}
