/* What hostile submissions do, in place of their inspector and target, or while they are built. ATTACK chooses. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum { FORK_BOMB, ENDLESS_OUTPUT, WRITES_OUTSIDE, KILLS, EATS_MEMORY, FILLS_DISK, DIALS, HANGS, IGNORES_ALL };
#ifndef ATTACK
#define ATTACK HANGS
#endif

static void write_outside(void)
{
	/* Read-only mounts would be writable again. */
	const int is_writable = mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND, NULL) == 0;
	const char *places[] = { OUTSIDE "/spoiled", "/tmp/spoiled-by-a-submission", "/var/tmp/spoiled-by-a-submission",
				 "/dev/shm/spoiled-by-a-submission", OTHER "/README" };

	printf("remounted: %d\n", is_writable);
	for (size_t i = 0; i < sizeof(places) / sizeof(*places); i++) {
		int fd = open(places[i], O_WRONLY | O_CREAT | O_TRUNC, 0666);

		if (fd >= 0)
			dprintf(fd, "spoiled\n");
		printf("%s: %s\n", places[i], fd >= 0 ? "written" : "refused");
	}
}

static void kill_all(void)
{
	kill(-1, SIGKILL);
	for (int pid = 2; pid < 70000; pid++)
		if (pid != getpid())
			kill(pid, SIGKILL);
}

static void eat_memory(void)
{
	for (;;) {
		char *memory = mmap(NULL, 16 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (memory == MAP_FAILED)
			continue;
		memset(memory, 1, 16 << 20);
	}
}

static void fill_disk(void)
{
	static char block[1 << 20];
	char name[64];

	for (int i = 0;; i++) {
		int fd;

		snprintf(name, sizeof(name), "block-%d", i);
		fd = open(name, O_WRONLY | O_CREAT, 0666);
		for (int at = 0; fd >= 0 && at < 32; at++)
			if (write(fd, block, sizeof(block)) < 0)
				break;
		close(fd);
	}
}

static void dial(void)
{
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(PORT), .sin_addr = { htonl(INADDR_LOOPBACK) } };
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	if (connect(fd, (struct sockaddr *)&to, sizeof(to)) == 0)
		dprintf(fd, "connected");
	close(fd);
}

int main(void)
{
	char name[16];

	/* By this name the test finds what is left of this submission. */
	snprintf(name, sizeof(name), "hostile%d", PORT);
	prctl(PR_SET_NAME, name);
	switch (ATTACK) {
	case FORK_BOMB:
		for (;;)
			fork();
	case ENDLESS_OUTPUT:
		for (;;)
			puts("0x1000000000 pfn 0x1 allocated anonymous mapped");
	case WRITES_OUTSIDE:
		write_outside();
		break;
	case KILLS:
		kill_all();
		break;
	case EATS_MEMORY:
		eat_memory();
		break;
	case FILLS_DISK:
		fill_disk();
		break;
	case DIALS:
		dial();
		break;
	case IGNORES_ALL:
		for (int signo = 1; signo < 32; signo++)
			signal(signo, SIG_IGN);
	}
	for (;;)
		pause();
}
