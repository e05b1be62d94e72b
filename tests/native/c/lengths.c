/* Lengths and numbers that the host refuses, or takes in part: of calls whose buffers are copied. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static const unsigned long sizes[] = {0, 1, 12, 4096, 0x7fffffff, 0x80000000UL, 0xffffffff, 1UL << 40, 1UL << 63, ~0UL};

static void show(const char *what, unsigned long size, long ret)
{
	printf("%s %#lx: %ld %s\n", what, size, ret, ret < 0 ? strerror(errno) : "");
}

int main(void)
{
	static char buffer[8192];
	struct epoll_event event = {.events = EPOLLIN}, events[4];
	int ends[2], pair[2], file = open("/dev/zero", O_RDONLY), efd = epoll_create1(0);
	if (pipe2(ends, O_NONBLOCK) || socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0, pair))
		return 1;
	epoll_ctl(efd, EPOLL_CTL_ADD, pair[0], &event);
	for (unsigned long i = 0; i < sizeof sizes / sizeof *sizes; i++) {
		unsigned long size = sizes[i];
		struct iovec iov = {buffer, size};
		if (write(ends[1], "0123456789", 10) != 10 || send(pair[1], "datagram", 8, 0) != 8)
			return 2;
		if (size <= sizeof buffer)
			show("read", size, read(file, buffer, size));
		show("read of a pipe", size, syscall(SYS_read, ends[0], buffer, size));
		if (size <= sizeof buffer)
			show("pread", size, pread(file, buffer, size, 0));
		show("write to a full pipe", size, size && size <= sizeof buffer ? 0 : syscall(SYS_write, ends[1], size ? (void *)8 : buffer, size));
		show("readv", size, syscall(SYS_readv, ends[0], &iov, 1));
		show("epoll_wait", size, syscall(SYS_epoll_wait, efd, events, size, 0));
		show("epoll_pwait", size, syscall(SYS_epoll_pwait, efd, events, size, 0, 0, 8));
		show("recv", size, syscall(SYS_recvfrom, pair[0], buffer, size, 0, 0, 0));
		show("getcwd", size, syscall(SYS_getcwd, buffer, size) > 0);
		show("readlink", size, syscall(SYS_readlink, "/proc/self/ns/pid", buffer, size) > 0);
		show("poll", size, size < 2 ? poll(&(struct pollfd){pair[1], POLLOUT, 0}, size, 0) : 0);
		while (recv(pair[0], buffer, sizeof buffer, 0) > 0)
			;
		while (read(ends[0], buffer, sizeof buffer) > 0)
			;
	}
	return 0;
}
