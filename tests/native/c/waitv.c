/* futex_waitv(): woken by a thread and by another process, out of time, by a signal, and each error. What the states of threads
 * are meanwhile. And futex() with pointers that lead nowhere. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define NR_futex_waitv 449
#define MOST 128

struct waitv { uint64_t value, address; uint32_t flags, reserved; };

static uint32_t *words;
static struct waitv waiters[MOST + 1];
static volatile int waiter;

static long wait_for(const struct waitv *list, long count, long flags, const void *time, long clock)
{
	return syscall(NR_futex_waitv, list, count, flags, time, clock);
}

static void tell(const char *what, long ret)
{
	printf("%s: %ld %s\n", what, ret, ret < 0 ? strerrorname_np(errno) : "");
}

static struct timespec after(long milliseconds)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	time.tv_nsec += milliseconds * 1000000;
	time.tv_sec += time.tv_nsec / 1000000000;
	time.tv_nsec %= 1000000000;
	return time;
}

static void *thread(void *flags)
{
	waiter = gettid();
	(void)flags;
	tell("a thread waits", wait_for(waiters, 3, 0, 0, CLOCK_MONOTONIC));
	return 0;
}

/* Wait until a task of this process sleeps; what its files say. */
static void until_asleep(const char *path)
{
	char text[512] = "", name[64];
	for (int i = 0; i < 5000 && !strstr(text, ") S "); i++) {
		FILE *file;
		usleep(1000);
		snprintf(name, sizeof name, "/proc/%s/stat", path);
		file = fopen(name, "r");
		if (file && fgets(text, sizeof text, file))
			fclose(file);
	}
	puts(strstr(text, ") S ") ? "it sleeps" : "it does not sleep");
}

static void wake_threads(uint32_t flags, int operation)
{
	char path[64];
	pthread_t made;
	for (int i = 0; i < 3; i++)
		waiters[i] = (struct waitv){0, (uint64_t)&words[i * 2000], flags, 0};
	waiter = 0;
	pthread_create(&made, 0, thread, 0);
	while (!waiter)
		usleep(1000);
	snprintf(path, sizeof path, "self/task/%d", waiter);
	until_asleep(path);
	long woken = syscall(SYS_futex, &words[2000], operation, 1, 0, 0, 0);
	pthread_join(made, 0);
	tell("woken", woken);
}

static void handler(int signo)
{
	(void)signo;
}

/* A child sleeps by a shared futex while its parent writes to the page, and more: its frame may change. */
static void wake_child(void)
{
	struct sigaction action = {.sa_handler = handler};
	char path[64];
	int status;
	for (int i = 0; i < 2; i++) {
		pid_t child = fork();
		if (!child) {
			struct timespec end = after(20000);
			sigaction(SIGUSR1, &action, 0);
			tell("a child waits", wait_for(waiters, 3, 0, &end, CLOCK_MONOTONIC));
			exit(0);
		}
		snprintf(path, sizeof path, "%d", child);
		until_asleep(path);
		long woken = i ? kill(child, SIGUSR1) : syscall(SYS_futex, &words[4000], FUTEX_WAKE, 1, 0, 0, 0);
		waitpid(child, &status, 0);
		printf("woken: %ld, status %d\n", woken, status);
	}
}

static void errors(void)
{
	struct timespec time = after(20), bad_time = {0, 2000000000};
	struct waitv odd = {0, (uint64_t)words + 1, FUTEX_32, 0}, far = {0, 8, FUTEX_32 | FUTEX_PRIVATE_FLAG, 0};
	struct waitv kernel = {0, 0xffff800000000000, FUTEX_32, 0}, other = {7, (uint64_t)words, FUTEX_32, 0};
	struct waitv flags = {0, (uint64_t)words, 0x1000, 0}, reserved = {0, (uint64_t)words, FUTEX_32, 1};
	void *bad = (void *)16;
	tell("out of time", wait_for(waiters, 3, 0, &time, CLOCK_MONOTONIC));
	tell("another value", wait_for(&other, 1, 0, 0, CLOCK_MONOTONIC));
	tell("not aligned", wait_for(&odd, 1, 0, 0, CLOCK_MONOTONIC));
	tell("no memory", wait_for(&far, 1, 0, 0, CLOCK_MONOTONIC));
	tell("the kernel's memory", wait_for(&kernel, 1, 0, 0, CLOCK_MONOTONIC));
	tell("unknown flags of one", wait_for(&flags, 1, 0, 0, CLOCK_MONOTONIC));
	tell("reserved", wait_for(&reserved, 1, 0, 0, CLOCK_MONOTONIC));
	tell("flags", wait_for(waiters, 3, 1, 0, CLOCK_MONOTONIC));
	tell("none", wait_for(waiters, 0, 0, 0, CLOCK_MONOTONIC));
	tell("too many", wait_for(waiters, MOST + 1, 0, 0, CLOCK_MONOTONIC));
	tell("no list", wait_for(0, 1, 0, 0, CLOCK_MONOTONIC));
	tell("a bad list", wait_for(bad, 1, 0, 0, CLOCK_MONOTONIC));
	tell("a bad time", wait_for(waiters, 3, 0, bad, CLOCK_MONOTONIC));
	tell("a wrong time", wait_for(waiters, 3, 0, &bad_time, CLOCK_MONOTONIC));
	tell("a wrong clock", wait_for(waiters, 3, 0, &time, 99));
	tell("futex: a bad time", syscall(SYS_futex, words, FUTEX_WAIT, 0, bad, 0, 0));
	tell("futex: no memory", syscall(SYS_futex, bad, FUTEX_WAIT, 0, 0, 0, 0));
	tell("futex: the kernel's memory", syscall(SYS_futex, kernel.address, FUTEX_WAKE, 1, 0, 0, 0));
	tell("futex: the kernel's memory, to wait", syscall(SYS_futex, kernel.address, FUTEX_WAIT, 1, 0, 0, 0));
}

int main(void)
{
	words = mmap(0, 16 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	setvbuf(stdout, 0, _IONBF, 0);
	wake_threads(FUTEX_32 | FUTEX_PRIVATE_FLAG, FUTEX_WAKE_PRIVATE);
	wake_threads(FUTEX_32, FUTEX_WAKE);
	wake_child();
	errors();
	return 0;
}
