/* Ends by a signal that dumps core, as its argument says, with memory of each kind. It prints what lies where. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096
#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif
char global_text[] = "written where the program's data are";
static pthread_barrier_t both;

static void *waiting_thread(void *unused)
{
	pthread_barrier_wait(&both);
	for (;;)
		pause();
	return unused;
}

static void *mapping_thread(void *unused)
{
	pthread_barrier_wait(&both);
	for (;;) {
		char *at = mmap(0, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		memset(at, 1, 8 * PAGE);
		munmap(at, 8 * PAGE);
	}
	return unused;
}

static void *forking_thread(void *unused)
{
	pthread_barrier_wait(&both);
	for (;;) {
		int pid = fork();
		if (!pid)
			_exit(0);
		if (pid > 0)
			waitpid(pid, 0, 0);
	}
	return unused;
}

static void *crashing_thread(void *unused)
{
	pthread_barrier_wait(&both);
	*(volatile int *)16 = 1;
	return unused;
}

static char *map(int flags, int fd)
{
	return mmap(0, 4 * PAGE, PROT_READ | PROT_WRITE, flags, fd, 0);
}

static void tell(const char *name, const void *at)
{
	printf("%s %lu\n", name, (unsigned long)at);
}

static void fill(void)
{
	int fd = open("/proc/self/exe", O_RDONLY);
	char *heap = malloc(100), *left_out, *shared, *own_file, *closed, *swapped, *keyed;
	int key = pkey_alloc(0, PKEY_DISABLE_ACCESS);
	strcpy(heap, "in the heap");
	strcpy(left_out = map(MAP_PRIVATE | MAP_ANONYMOUS, -1), "not to be dumped");
	madvise(left_out, PAGE, MADV_DONTDUMP);
	strcpy(left_out + PAGE, "dumped behind it");
	shared = map(MAP_SHARED | MAP_ANONYMOUS, -1);
	if (!fork()) {
		strcpy(shared + PAGE, "written by a child");
		_exit(0);
	}
	wait(0);
	own_file = map(MAP_PRIVATE, fd);
	strcpy(own_file + PAGE, "own page of a file");
	strcpy(closed = map(MAP_PRIVATE | MAP_ANONYMOUS, -1), "may not be read");
	mprotect(closed, PAGE, PROT_NONE);
	strcpy(swapped = map(MAP_SHARED | MAP_ANONYMOUS, -1), "shared and swapped out");
	madvise(swapped, PAGE, MADV_PAGEOUT);
	strcpy(keyed = map(MAP_PRIVATE | MAP_ANONYMOUS, -1), "behind a key");
	if (key > 0)
		pkey_mprotect(keyed, PAGE, PROT_READ | PROT_WRITE, key);
	mmap((void *)0x620000000000, 0x190000000000, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
	tell("global", global_text);
	tell("heap", heap);
	tell("left_out", left_out);
	tell("behind", left_out + PAGE);
	tell("shared", shared + PAGE);
	tell("own_file", own_file + PAGE);
	tell("closed", closed);
	tell("swapped", swapped);
	tell("keyed", keyed);
}

__attribute__((noinline)) void end(const char *how, int depth)
{
	char local[64];
	snprintf(local, sizeof local, "depth %d", depth);
	if (depth) {
		end(how, depth - 1);
		__asm__ volatile("" : : "r"(local) : "memory");
		return;
	}
	tell("stack", local);
	tell("end", end);
	fflush(stdout);
	if (!strcmp(how, "waits"))
		getchar();
	if (!strcmp(how, "trap"))
		__builtin_trap();
	if (!strcmp(how, "null"))
		*(volatile int *)16 = 1;
	if (!strcmp(how, "busy"))
		crashing_thread(0);
	if (!strcmp(how, "killed"))
		kill(getpid(), SIGQUIT);
	abort();
}

/* A child that borrows the memory ends so; its parent goes on with it. */
static void end_borrower(void)
{
	int status, pid = vfork();
	if (!pid) {
		*(volatile int *)16 = 1;
		_exit(0);
	}
	waitpid(pid, &status, 0);
	printf("the child: signal %d, core %d; %s\n", WTERMSIG(status), !!WCOREDUMP(status), global_text);
}

int main(int argc, char **argv)
{
	void *(*bodies[])(void *) = {waiting_thread, mapping_thread, forking_thread, crashing_thread};
	const char *how = argv[argc - 1];
	int count = !strcmp(how, "busy") ? 4 : 1;
	pthread_t thread;
	if (!strcmp(how, "vfork")) {
		end_borrower();
		return 0;
	}
	fill();
	pthread_barrier_init(&both, 0, count + 1);
	for (int i = 0; i < count; i++)
		pthread_create(&thread, 0, bodies[i], 0);
	pthread_barrier_wait(&both);
	end(how, 3);
	return 1;
}
