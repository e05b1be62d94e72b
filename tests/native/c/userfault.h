/* What the programs of these tests share: a userfaultfd, memory that it watches, and scenes. Usage of each: PROGRAM SCENE [KIND] */
#pragma once
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
#define PAGE 4096UL
#define MASK (-PAGE)
#define PAGES 8

static char *area;
static int uffd;
static const char *scene;

__attribute__((unused)) static void *map(unsigned long pages, int flags, int fd)
{
	return mmap(0, pages * PAGE, PROT_READ | PROT_WRITE, flags, fd, 0);
}

__attribute__((unused)) static int open_uffd(int flags, unsigned long features)
{
	struct uffdio_api api = {.api = UFFD_API, .features = features};
	int fd = syscall(SYS_userfaultfd, flags);
	if (fd < 0 || ioctl(fd, UFFDIO_API, &api)) {
		printf("userfaultfd: %s\n", strerror(errno));
		exit(1);
	}
	return fd;
}

/* 0 or -errno. */
__attribute__((unused)) static int watch(int fd, void *start, unsigned long pages)
{
	struct uffdio_register given = {.range = {(unsigned long)start, pages * PAGE}, .mode = UFFDIO_REGISTER_MODE_MISSING};
	return ioctl(fd, UFFDIO_REGISTER, &given) ? -errno : 0;
}

__attribute__((unused)) static int unwatch(int fd, void *start, unsigned long pages)
{
	struct uffdio_range range = {(unsigned long)start, pages * PAGE};
	return ioctl(fd, UFFDIO_UNREGISTER, &range) ? -errno : 0;
}

__attribute__((unused)) static int wake(int fd, void *start, unsigned long pages)
{
	struct uffdio_range range = {(unsigned long)start, pages * PAGE};
	return ioctl(fd, UFFDIO_WAKE, &range) ? -errno : 0;
}

static long copied;	/* what the last ioctl has said */

__attribute__((unused)) static int copy(int fd, void *to, const void *from, unsigned long pages, unsigned long mode)
{
	struct uffdio_copy given = {(unsigned long)to, (unsigned long)from, pages * PAGE, mode, 77};
	int ret = ioctl(fd, UFFDIO_COPY, &given) ? -errno : 0;
	copied = given.copy;
	return ret;
}

__attribute__((unused)) static int zero(int fd, void *to, unsigned long pages, unsigned long mode)
{
	struct uffdio_zeropage given = {{(unsigned long)to, pages * PAGE}, mode, 77};
	int ret = ioctl(fd, UFFDIO_ZEROPAGE, &given) ? -errno : 0;
	copied = given.zeropage;
	return ret;
}

/* Wait for a message; the number of the page in `area`. */
__attribute__((unused)) static unsigned long next_fault(int fd, struct uffd_msg *message)
{
	struct pollfd ready = {fd, POLLIN, 0};
	do
		poll(&ready, 1, -1);
	while (read(fd, message, sizeof *message) != sizeof *message);
	return (message->arg.pagefault.address - (unsigned long)area) / PAGE;
}

/* A thread that gives each page asked for: page N is full of 'a' + N; every third one is of zeros. */
__attribute__((unused)) static void *give(void *unused)
{
	char *source = map(1, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	struct uffd_msg message;
	(void)unused;
	for (;;) {
		unsigned long page = next_fault(uffd, &message);
		void *to = (void *)(message.arg.pagefault.address & MASK);
		memset(source, 'a' + page, PAGE);
		if (page % 3 == 2)
			zero(uffd, to, 1, 0);
		else
			copy(uffd, to, source, 1, 0);
	}
	return 0;
}

__attribute__((unused)) static void start(void *(*function)(void *))
{
	pthread_t thread;
	pthread_create(&thread, 0, function, 0);
}

__attribute__((unused)) static void flags_of(const char *what, void *address)
{
	FILE *smaps = fopen("/proc/self/smaps", "r");
	char line[512];
	unsigned long from, to, size = 0, at = (unsigned long)address;
	int here = 0;
	while (fgets(line, sizeof line, smaps)) {
		if (strspn(line, "0123456789abcdef") > 4 && sscanf(line, "%lx-%lx", &from, &to) == 2) {
			here = at >= from && at < to;
			size = to - from;
		}
		/* Soft-dirty bits are a matter of the kernel's configuration. */
		char *soft_dirty = strstr(line, " sd");
		if (soft_dirty)
			strcpy(soft_dirty, soft_dirty + 3);
		if (here && !strncmp(line, "VmFlags", 7))
			printf("%s: %lu pages,%s", what, size / PAGE, line + 8);
	}
	fclose(smaps);
}

__attribute__((unused)) static void result(const char *what, long ret)
{
	printf("%s %ld %s\n", what, ret, ret < 0 ? strerror(errno) : "");
}

__attribute__((unused)) static void show(const char *what)
{
	printf("%s: ", what);
	for (int i = 0; i < PAGES; i++)
		putchar(area[i * PAGE + 5] ? area[i * PAGE + 5] : '0');
	putchar('\n');
}

static void *give_nothing(void *unused)
{
	return unused;
}

static void setup(const char *kind)
{
	int flags = strcmp(scene, "user_mode_only") ? 0 : UFFD_USER_MODE_ONLY;
	int fd = memfd_create("memory", 0);
	ftruncate(fd, PAGES * PAGE);
	if (!strcmp(kind, "private"))
		area = map(PAGES + 2, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	else if (!strcmp(kind, "shared"))
		area = map(PAGES + 2, MAP_SHARED | MAP_ANONYMOUS, -1);
	else
		area = map(PAGES, !strcmp(kind, "memfd") ? MAP_SHARED : MAP_PRIVATE, fd);
	if (strcmp(kind, "memfd") && strcmp(kind, "memfd_private")) {
		/*
		 * Nothing that could merge with it lies beside it, and no mapping of a scene finds a place there. Something has
		 * been written to it: since 6.7 mprotect takes VM_ACCOUNT from memory without an anon_vma.
		 */
		*area = 1;
		mprotect(area, PAGE, PROT_NONE);
		area += PAGE;
		mprotect(area + PAGES * PAGE, PAGE, PROT_NONE);
	}
	uffd = open_uffd(O_NONBLOCK | flags, 0);
	if (watch(uffd, area, PAGES))
		printf("register: %s\n", strerror(errno));
}

struct scene {
	const char *name;
	void (*play)(void);
};

/* Play the scene that is asked for; 2 if there is none of this name. */
static int play(const struct scene *scenes, int argc, char **argv)
{
	scene = argv[1];
	setvbuf(stdout, 0, _IOLBF, 0);
	start(give_nothing);	/* so that its stack and arena lie where no scene looks */
	while (scenes->name && strcmp(scenes->name, scene))
		scenes++;
	if (!scenes->name)
		_exit(2);
	setup(argc > 2 ? argv[2] : "private");
	scenes->play();
	fflush(stdout);
	_exit(0);
}
