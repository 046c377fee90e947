/*
 * vsockcat: standard input and output through a vsock connection, for the guest of the lab.
 *
 *     vsockcat PORT        connects to the host's PORT, copies both ways until the connection ends
 *     vsockcat -l PORT     listens at PORT and gives every connection back what it says, for ever
 */
#include <linux/vm_sockets.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int fail(const char *what)
{
	perror(what);
	return 1;
}

/* Copies once; 0 at the end of `from`. */
static ssize_t copy(int from, int to)
{
	char buf[4096];
	ssize_t n = read(from, buf, sizeof(buf));

	for (ssize_t done = 0; done < n;) {
		ssize_t k = write(to, buf + done, (size_t)(n - done));

		if (k < 0)
			return -1;
		done += k;
	}
	return n;
}

static int echo(int listener)
{
	for (;;) {
		int fd = accept(listener, NULL, NULL);

		if (fd < 0)
			return fail("accept");
		if (fork() == 0) {
			while (copy(fd, fd) > 0)
				;
			_exit(0);
		}
		close(fd);
	}
}

static int cat(int fd)
{
	struct pollfd p[2] = {{.fd = fd, .events = POLLIN}, {.fd = 0, .events = POLLIN}};

	for (;;) {
		if (poll(p, 2, -1) < 0)
			return fail("poll");
		if (p[0].revents) {
			ssize_t n = copy(fd, 1);

			if (n <= 0)
				return n < 0 ? fail("connection") : 0;
		}
		if (p[1].revents && copy(0, fd) <= 0) {
			shutdown(fd, SHUT_WR);
			p[1].fd = -1;
		}
	}
}

int main(int argc, char **argv)
{
	int listens = argc == 3 && strcmp(argv[1], "-l") == 0, fd = socket(AF_VSOCK, SOCK_STREAM, 0);
	struct sockaddr_vm a = {.svm_family = AF_VSOCK};

	if (argc != 2 + listens) {
		fprintf(stderr, "usage: vsockcat [-l] PORT\n");
		return 2;
	}
	a.svm_port = (unsigned)strtoul(argv[1 + listens], NULL, 10);
	a.svm_cid = listens ? VMADDR_CID_ANY : VMADDR_CID_HOST;
	if (fd < 0)
		return fail("vsock");
	if (!listens)
		return connect(fd, (struct sockaddr *)&a, sizeof(a)) ? fail("connect") : cat(fd);
	if (bind(fd, (struct sockaddr *)&a, sizeof(a)) || listen(fd, 4))
		return fail("listen");
	return echo(fd);
}
