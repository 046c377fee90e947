/*
 * frame-switch: a small Ethernet switch between a tap and any number of unix stream sockets, in the framing of QEMU's `-netdev stream` and
 * passt (32-bit big-endian length before each frame), which can lose, double, reorder and record what passes.
 *
 *     frame-switch [options] SOCKET     listens at SOCKET; prints "ready" when it can be used
 *       -t TAP        a tap to attach (made if it is not there)
 *       -d N -D N -r N  of 1,000 frames, in both directions: lost, doubled, overtaken by the next one (0)
 *       -s SEED       of the dice (1)
 *       -w FILE       every frame that came in, as a pcap
 *       -L FILE       one line per frame that came in: ns (CLOCK_MONOTONIC), port, source, destination, bytes
 *       -x SECONDS    end by itself after so long (600)
 *
 * Port 0 is the tap, sockets are numbered as they connect. It learns which port a source address was last seen on, as any switch does,
 * so a gratuitous ARP moves a guest's traffic to the host that took over. Frames to a full socket are dropped, never queued without bound.
 * Prints counts at its end (SIGTERM, SIGINT or -x).
 */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define FRAME_MAX  65550u
#define PORTS_MAX  32
#define MACS_MAX   64
#define BUFFER     (4 * (FRAME_MAX + 4))

struct port {
	int fd; /* -1: free */
	unsigned number;
	bool tap;
	uint8_t *in, *out; /* BUFFER bytes each, sockets only */
	size_t in_bytes, out_bytes;
	uint8_t *held; /* a frame that the next one overtakes */
	size_t held_bytes;
};

struct mac {
	uint8_t address[6];
	int port;
};

struct frame_switch {
	struct port ports[PORTS_MAX];
	struct mac macs[MACS_MAX];
	unsigned mac_count, next_number;
	int listener, signals;
	unsigned drop, twice, reorder;
	uint64_t dice, end_ns;
	uint64_t frames, dropped, doubled, reordered, overflowed;
	FILE *pcap, *log;
};

static uint64_t clock_ns(clockid_t id)
{
	struct timespec ts;

	clock_gettime(id, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static void *buffer(size_t bytes)
{
	void *p = malloc(bytes);

	if (!p)
		errx(2, "out of memory");
	return p;
}

/* xorshift64*, Vigna 2014; true in `of_thousand` of 1,000 cases. */
static bool roll(struct frame_switch *s, unsigned of_thousand)
{
	s->dice ^= s->dice >> 12;
	s->dice ^= s->dice << 25;
	s->dice ^= s->dice >> 27;
	return (s->dice * UINT64_C(0x2545f4914f6cdd1d) >> 33) % 1000 < of_thousand;
}

static void record(struct frame_switch *s, const struct port *from, const uint8_t *f, size_t bytes)
{
	if (s->pcap) {
		uint64_t now = clock_ns(CLOCK_REALTIME);
		uint32_t head[4] = { (uint32_t)(now / 1000000000u), (uint32_t)(now % 1000000000u / 1000), (uint32_t)bytes, (uint32_t)bytes };

		fwrite(head, sizeof(head), 1, s->pcap);
		fwrite(f, bytes, 1, s->pcap);
	}
	if (s->log)
		fprintf(s->log, "%" PRIu64 " %u %02x:%02x:%02x:%02x:%02x:%02x %02x:%02x:%02x:%02x:%02x:%02x %zu\n", clock_ns(CLOCK_MONOTONIC), from->number, f[6], f[7],
			f[8], f[9], f[10], f[11], f[0], f[1], f[2], f[3], f[4], f[5], bytes);
}

static void close_port(struct frame_switch *s, struct port *p)
{
	for (unsigned i = 0; i < s->mac_count; i++)
		if (s->macs[i].port == p - s->ports)
			s->macs[i].port = -1;
	close(p->fd);
	free(p->in);
	free(p->out);
	free(p->held);
	*p = (struct port){ .fd = -1 };
}

static void flush_port(struct frame_switch *s, struct port *p)
{
	while (p->out_bytes) {
		ssize_t n = send(p->fd, p->out, p->out_bytes, MSG_DONTWAIT | MSG_NOSIGNAL);

		if (n < 0 && errno != EAGAIN)
			close_port(s, p);
		if (n <= 0)
			return;
		p->out_bytes -= (size_t)n;
		memmove(p->out, p->out + n, p->out_bytes);
	}
}

static void deliver(struct frame_switch *s, struct port *p, const uint8_t *f, size_t bytes)
{
	if (p->tap) {
		if (write(p->fd, f, bytes) < 0)
			s->overflowed++;
		return;
	}
	if (BUFFER - p->out_bytes < bytes + 4) {
		s->overflowed++;
		return;
	}
	const uint8_t head[4] = { (uint8_t)(bytes >> 24), (uint8_t)(bytes >> 16), (uint8_t)(bytes >> 8), (uint8_t)bytes };

	memcpy(p->out + p->out_bytes, head, 4);
	memcpy(p->out + p->out_bytes + 4, f, bytes);
	p->out_bytes += bytes + 4;
	flush_port(s, p);
}

static struct mac *find_mac(struct frame_switch *s, const uint8_t address[6])
{
	for (unsigned i = 0; i < s->mac_count; i++)
		if (memcmp(s->macs[i].address, address, 6) == 0)
			return &s->macs[i];
	return NULL;
}

static void learn(struct frame_switch *s, const struct port *from, const uint8_t address[6])
{
	struct mac *m = find_mac(s, address);

	if (!m && s->mac_count < MACS_MAX) {
		m = &s->macs[s->mac_count++];
		memcpy(m->address, address, 6);
	}
	if (m)
		m->port = (int)(from - s->ports);
}

static void forward(struct frame_switch *s, const struct port *from, const uint8_t *f, size_t bytes)
{
	const struct mac *m = f[0] & 1 ? NULL : find_mac(s, f);

	if (m && m->port >= 0) {
		if (&s->ports[m->port] != from)
			deliver(s, &s->ports[m->port], f, bytes);
		return;
	}
	for (unsigned i = 0; i < PORTS_MAX; i++)
		if (s->ports[i].fd >= 0 && &s->ports[i] != from)
			deliver(s, &s->ports[i], f, bytes);
}

static void take_frame(struct frame_switch *s, struct port *from, const uint8_t *f, size_t bytes)
{
	if (bytes < 14)
		return;
	s->frames++;
	record(s, from, f, bytes);
	learn(s, from, f + 6);
	if (roll(s, s->drop)) {
		s->dropped++;
		return;
	}
	if (!from->held_bytes && roll(s, s->reorder)) {
		if (!from->held)
			from->held = buffer(FRAME_MAX);
		memcpy(from->held, f, bytes);
		from->held_bytes = bytes;
		s->reordered++;
		return;
	}
	forward(s, from, f, bytes);
	if (roll(s, s->twice)) {
		s->doubled++;
		forward(s, from, f, bytes);
	}
	if (from->held_bytes) {
		forward(s, from, from->held, from->held_bytes);
		from->held_bytes = 0;
	}
}

static void read_socket(struct frame_switch *s, struct port *p)
{
	ssize_t n = recv(p->fd, p->in + p->in_bytes, BUFFER - p->in_bytes, MSG_DONTWAIT);
	size_t at = 0;

	if (n < 0 && errno == EAGAIN)
		return;
	if (n <= 0) {
		close_port(s, p);
		return;
	}
	p->in_bytes += (size_t)n;
	while (p->in_bytes - at >= 4) {
		const uint8_t *h = p->in + at;
		size_t bytes = (size_t)h[0] << 24 | (size_t)h[1] << 16 | (size_t)h[2] << 8 | h[3];

		if (bytes > FRAME_MAX) {
			fprintf(stderr, "frame-switch: port %u: frame of %zu bytes\n", p->number, bytes);
			close_port(s, p);
			return;
		}
		if (p->in_bytes - at - 4 < bytes)
			break;
		take_frame(s, p, h + 4, bytes);
		at += bytes + 4;
	}
	p->in_bytes -= at;
	memmove(p->in, p->in + at, p->in_bytes);
}

static void read_tap(struct frame_switch *s, struct port *p)
{
	static uint8_t frame[FRAME_MAX];
	ssize_t n;

	for (unsigned budget = 64; budget && (n = read(p->fd, frame, sizeof(frame))) > 0; budget--)
		take_frame(s, p, frame, (size_t)n);
}

static struct port *add_port(struct frame_switch *s, int fd, bool tap)
{
	for (unsigned i = 0; i < PORTS_MAX; i++) {
		struct port *p = &s->ports[i];

		if (p->fd >= 0)
			continue;
		*p = (struct port){ .fd = fd, .tap = tap, .number = tap ? 0 : ++s->next_number };
		if (!tap) {
			p->in = buffer(BUFFER);
			p->out = buffer(BUFFER);
		}
		return p;
	}
	close(fd);
	return NULL;
}

static void open_tap(struct frame_switch *s, const char *name)
{
	struct ifreq r = { .ifr_flags = IFF_TAP | IFF_NO_PI };
	int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);

	snprintf(r.ifr_name, sizeof(r.ifr_name), "%s", name);
	if (fd < 0 || ioctl(fd, TUNSETIFF, &r) < 0)
		err(2, "tap %s", name);
	add_port(s, fd, true);
}

static void open_listener(struct frame_switch *s, const char *path)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };

	if (strlen(path) >= sizeof(a.sun_path))
		errx(2, "%s: path too long", path);
	memcpy(a.sun_path, path, strlen(path));
	unlink(path);
	s->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (s->listener < 0 || bind(s->listener, (struct sockaddr *)&a, sizeof(a)) < 0 || listen(s->listener, 8) < 0)
		err(2, "%s", path);
}

static FILE *open_file(const char *path)
{
	FILE *f = fopen(path, "we");

	if (!f)
		err(2, "%s", path);
	return f;
}

/* The classic pcap header: libpcap's savefile(5), Ethernet, microseconds. */
static FILE *open_pcap(const char *path)
{
	static const struct {
		uint32_t magic;
		uint16_t major, minor;
		uint32_t zone, figures, snap, link;
	} head = { 0xa1b2c3d4, 2, 4, 0, 0, FRAME_MAX, 1 };
	FILE *f = open_file(path);

	fwrite(&head, sizeof(head), 1, f);
	return f;
}

static void parse_args(struct frame_switch *s, int argc, char **argv)
{
	int c;

	s->dice = 1;
	s->end_ns = clock_ns(CLOCK_MONOTONIC) + UINT64_C(600000000000);
	while ((c = getopt(argc, argv, "t:d:D:r:s:w:L:x:")) != -1) {
		switch (c) {
		case 't': open_tap(s, optarg); break;
		case 'd': s->drop = (unsigned)atoi(optarg); break;
		case 'D': s->twice = (unsigned)atoi(optarg); break;
		case 'r': s->reorder = (unsigned)atoi(optarg); break;
		case 's': s->dice = strtoull(optarg, NULL, 0) | 1; break;
		case 'w': s->pcap = open_pcap(optarg); break;
		case 'L': s->log = open_file(optarg); break;
		case 'x': s->end_ns = clock_ns(CLOCK_MONOTONIC) + (uint64_t)(atof(optarg) * 1e9); break;
		default: errx(2, "usage: frame-switch [-t tap] [-d N] [-D N] [-r N] [-s seed] [-w pcap] [-L log] [-x seconds] SOCKET");
		}
	}
	if (optind + 1 != argc)
		errx(2, "want one socket path");
	open_listener(s, argv[optind]);
}

static void run(struct frame_switch *s)
{
	struct pollfd p[PORTS_MAX + 2];

	while (clock_ns(CLOCK_MONOTONIC) < s->end_ns) {
		for (unsigned i = 0; i < PORTS_MAX; i++)
			p[i] = (struct pollfd){ .fd = s->ports[i].fd, .events = (short)(POLLIN | (s->ports[i].out_bytes ? POLLOUT : 0)) };
		p[PORTS_MAX] = (struct pollfd){ .fd = s->listener, .events = POLLIN };
		p[PORTS_MAX + 1] = (struct pollfd){ .fd = s->signals, .events = POLLIN };
		if (poll(p, PORTS_MAX + 2, 200) < 0 && errno != EINTR)
			err(2, "poll");
		if (p[PORTS_MAX + 1].revents)
			return;
		for (unsigned i = 0; i < PORTS_MAX; i++) {
			struct port *q = &s->ports[i];

			if (p[i].revents & POLLOUT && q->fd >= 0)
				flush_port(s, q);
			if (p[i].revents & (POLLIN | POLLHUP | POLLERR) && q->fd >= 0) {
				if (q->tap)
					read_tap(s, q);
				else
					read_socket(s, q);
			}
		}
		if (p[PORTS_MAX].revents) {
			int fd = accept4(s->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

			if (fd >= 0)
				add_port(s, fd, false);
		}
	}
}

int main(int argc, char **argv)
{
	static struct frame_switch s;
	sigset_t set;

	for (unsigned i = 0; i < PORTS_MAX; i++)
		s.ports[i].fd = -1;
	parse_args(&s, argc, argv);
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigprocmask(SIG_BLOCK, &set, NULL);
	s.signals = signalfd(-1, &set, SFD_CLOEXEC);
	puts("ready");
	fflush(stdout);
	run(&s);
	printf("frames %" PRIu64 "\ndropped %" PRIu64 "\ndoubled %" PRIu64 "\nreordered %" PRIu64 "\noverflowed %" PRIu64 "\n", s.frames, s.dropped, s.doubled, s.reordered,
	       s.overflowed);
	if ((s.pcap && fclose(s.pcap) != 0) || (s.log && fclose(s.log) != 0))
		err(2, "writing the record");
	return 0;
}
