/* A program that gives up the superuser's rights, for a while and for good: which memory it may lock then, and that its
 * children and the program that it becomes still run. Without those rights from the start it does less. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#include <linux/capability.h>
#include <sys/syscall.h>

#define PAGE 4096
#define NOBODY 65534

static char *memory;

static const char *outcome(int ret)
{
	return ret < 0 ? strerror(errno) : "done";
}

static void lock(const char *when)
{
	struct rlimit limit = {PAGE, 4 * PAGE};
	printf("%s: a page is locked: %s", when, outcome(mlock(memory, PAGE)));
	printf("; four: %s", outcome(mlock(memory, 4 * PAGE)));
	munlockall();
	printf("; all: %s", outcome(mlockall(MCL_CURRENT)));
	munlockall();
	printf("; a locked mapping: %s", outcome(mmap(0, 4 * PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_LOCKED, -1, 0) == MAP_FAILED ? -1 : 0));
	printf("; the limit raised: %s\n", outcome(setrlimit(RLIMIT_MEMLOCK, &limit)));
	fflush(stdout);
}

static void show_frames(void)
{
	uint64_t word = 0;
	int fd = open("/proc/self/pagemap", O_RDONLY);
	if (fd < 0)
		printf("pagemap: %s\n", strerror(errno));
	else if (pread(fd, &word, 8, (uintptr_t)memory / PAGE * 8) == 8)
		printf("pagemap: present %d, frame %s\n", (int)(word >> 63), word << 9 ? "shown" : "hidden");
	fflush(stdout);
}

static void *thread(void *argument)
{
	lock(argument);
	return 0;
}

static void run(const char *when)
{
	pthread_t other;
	pthread_create(&other, 0, thread, (void *)when);
	pthread_join(other, 0);
	if (!fork()) {
		lock(when);
		if (!fork())
			_exit(execl("/bin/echo", "echo", "a grandchild", when, (char *)0));
		wait(0);
		_exit(0);
	}
	wait(0);
}

static void drop_capability(void)
{
	struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct data[2];
	syscall(SYS_capget, &head, data);
	data[0].effective &= ~(1U << CAP_IPC_LOCK);
	printf("CAP_IPC_LOCK dropped: %s\n", outcome(syscall(SYS_capset, &head, data)));
}

int main(void)
{
	struct rlimit limit = {PAGE, PAGE};
	memory = mmap(0, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	setrlimit(RLIMIT_MEMLOCK, &limit);
	lock("first");
	limit.rlim_max = PAGE;
	setrlimit(RLIMIT_MEMLOCK, &limit);
	show_frames();
	if (geteuid() == 0) {
		seteuid(NOBODY);
		lock("as nobody");
		run("as nobody");
		seteuid(0);
		lock("again");
		limit.rlim_max = PAGE;
		setrlimit(RLIMIT_MEMLOCK, &limit);
		show_frames();
		drop_capability();
		lock("without the capability");
	}
	setgid(NOBODY);
	setuid(NOBODY);
	lock("for good");
	run("for good");
	show_frames();
	fflush(stdout);
	return execl("/bin/echo", "echo", "another program", (char *)0);
}
