/* Small memory calls, made in C: on the host's kernel, and as the first process of a User-Mode Linux.
 *
 * Reads commands from stdin, one a line: a name and how often. Answers each with the nanoseconds that all of them took, on
 * one line. Setting up is outside of what is timed. Needs no library but libc, no /proc, and writes no file but FILE_NAME.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/sysinfo.h>
#include <sys/wait.h>
#include <unistd.h>

#include "timing.h"

#define PAGE 4096UL
#define FILE_NAME "/tmp/kerneld-bench-file"
#define IMAGE "/bin/true"
#define SWAP_DEVICE "/dev/ubda"
#define SWAP_STEP 16UL /* so far apart are the pages of swap_ins() that none is read with another */

static volatile char *map(size_t pages, int prot)
{
	void *p = mmap(NULL, pages * PAGE, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	check(p == MAP_FAILED, "mmap");
	madvise(p, pages * PAGE, MADV_NOHUGEPAGE);
	return p;
}

/* Ten mappings that do not merge, so that a call has neighbours to look at. */
static void neighbours(void)
{
	for (int i = 0; i < 10; i++)
		map(1, i % 2 ? PROT_READ : PROT_NONE);
}

static uint64_t pair(long times)
{
	uint64_t started = now();

	for (long i = 0; i < times; i++) {
		void *p = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		munmap(p, PAGE);
	}
	return now() - started;
}

/* One page of eight, written before, to read-only and back: two splits, then two merges. */
static uint64_t protect(long times)
{
	volatile char *p = map(8, PROT_READ | PROT_WRITE);
	uint64_t started;

	for (int i = 0; i < 8; i++)
		p[i * PAGE] = 1;
	started = now();
	for (long i = 0; i < times; i++) {
		mprotect((char *)p + 4 * PAGE, PAGE, PROT_READ);
		mprotect((char *)p + 4 * PAGE, PAGE, PROT_READ | PROT_WRITE);
	}
	started = now() - started;
	munmap((void *)p, 8 * PAGE);
	return started;
}

static uint64_t dontneed(long times)
{
	volatile char *p = map(8, PROT_READ | PROT_WRITE);
	uint64_t spent = 0;

	for (long i = 0; i < times; i++) {
		uint64_t started;

		p[PAGE] = 1;
		started = now();
		madvise((char *)p + PAGE, PAGE, MADV_DONTNEED);
		spent += now() - started;
	}
	munmap((void *)p, 8 * PAGE);
	return spent;
}

static uint64_t up_and_down(long times)
{
	uint64_t started = now();

	for (long i = 0; i < times; i++) {
		check(sbrk(2 * PAGE) == (void *)-1, "sbrk");
		check(sbrk(-2 * (long)PAGE) == (void *)-1, "sbrk");
	}
	return now() - started;
}

/* One page that grows where it is, and shrinks again. */
static uint64_t grow(long times)
{
	volatile char *p = map(8, PROT_READ | PROT_WRITE);
	uint64_t started;

	p[0] = 1;
	munmap((char *)p + PAGE, 7 * PAGE);
	started = now();
	for (long i = 0; i < times; i++) {
		check(mremap((void *)p, PAGE, 2 * PAGE, 0) == MAP_FAILED, "mremap");
		check(mremap((void *)p, 2 * PAGE, PAGE, 0) == MAP_FAILED, "mremap");
	}
	started = now() - started;
	munmap((void *)p, PAGE);
	return started;
}

static uint64_t read_faults(long times)
{
	volatile char *p = map(times, PROT_READ | PROT_WRITE);
	uint64_t started = now();

	for (long i = 0; i < times; i++)
		(void)p[i * PAGE];
	started = now() - started;
	munmap((void *)p, times * PAGE);
	return started;
}

static uint64_t write_faults(long times)
{
	volatile char *p = map(times, PROT_READ | PROT_WRITE);
	uint64_t started = now();

	for (long i = 0; i < times; i++)
		p[i * PAGE] = 1;
	started = now() - started;
	munmap((void *)p, times * PAGE);
	return started;
}

/* Writes to pages that a page of zeros stands for. */
static uint64_t cow_faults(long times)
{
	volatile char *p = map(times, PROT_READ | PROT_WRITE);
	uint64_t started;

	for (long i = 0; i < times; i++)
		(void)p[i * PAGE];
	started = now();
	for (long i = 0; i < times; i++)
		p[i * PAGE] = 1;
	started = now() - started;
	munmap((void *)p, times * PAGE);
	return started;
}

/* Reads of a cached file, one a window of sixteen pages. */
static uint64_t file_faults(long times)
{
	int fd = open(FILE_NAME, O_RDWR | O_CREAT, 0600);
	size_t bytes = times * 16 * PAGE;
	volatile char *p;
	uint64_t started;

	check(fd < 0, FILE_NAME);
	for (size_t at = 0; at < bytes; at += PAGE)
		check(pwrite(fd, "x", 1, at) != 1, "pwrite");
	p = mmap(NULL, bytes, PROT_READ, MAP_PRIVATE, fd, 0);
	check(p == MAP_FAILED, "mmap");
	started = now();
	for (long i = 0; i < times; i++)
		(void)p[i * 16 * PAGE];
	started = now() - started;
	munmap((void *)p, bytes);
	close(fd);
	unlink(FILE_NAME);
	return started;
}

/* A process of some thirty mappings and two hundred written pages. */
static uint64_t forks(long times)
{
	volatile char *p[20];
	uint64_t started;

	for (int i = 0; i < 20; i++) {
		p[i] = map(10, PROT_READ | PROT_WRITE);
		mprotect((char *)p[i] + 9 * PAGE, PAGE, PROT_NONE);
		for (int j = 0; j < 9; j++)
			p[i][j * PAGE] = 1;
	}
	started = now();
	for (long i = 0; i < times; i++) {
		pid_t pid = fork();

		if (pid == 0)
			_exit(0);
		waitpid(pid, NULL, 0);
	}
	started = now() - started;
	for (int i = 0; i < 20; i++)
		munmap((void *)p[i], 10 * PAGE);
	return started;
}

/* execve of an image until all of it is laid out: the child stops there, as a debugger's does. The fork is not timed. */
static uint64_t execs(long times)
{
	volatile uint64_t *started = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	char *argv[] = { "true", NULL }, *envp[] = { "PATH=/bin", NULL };
	uint64_t spent = 0;
	int status;

	check(started == MAP_FAILED, "mmap");
	for (long i = 0; i < times; i++) {
		pid_t pid = fork();

		if (pid == 0) {
			ptrace(PTRACE_TRACEME, 0, NULL, NULL);
			*started = now();
			execve(IMAGE, argv, envp);
			_exit(1);
		}
		check(waitpid(pid, &status, 0) != pid || !WIFSTOPPED(status), IMAGE);
		spent += now() - *started;
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
	}
	munmap((void *)started, PAGE);
	return spent;
}

static long in_memory(volatile char *p, long times)
{
	unsigned char there;
	long count = 0;

	for (long i = 0; i < times; i++)
		if (!mincore((char *)p + i * SWAP_STEP * PAGE, PAGE, &there))
			count += there & 1;
	return count;
}

/* Takes all free memory for a moment, so that what is written to the swap file is dropped. For a machine of our own. */
static void press(void)
{
	struct sysinfo info;
	size_t bytes;
	void *p;

	sysinfo(&info);
	bytes = info.freeram + (8UL << 20);
	p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	check(p == MAP_FAILED, "mmap");
	munmap(p, bytes);
}

/* Reads pages that are in a swap file alone. Returns 0 if there is no swap, or it keeps them in memory too. */
static uint64_t swap_ins(long times)
{
	volatile char *p = map(times * SWAP_STEP, PROT_READ | PROT_WRITE);
	uint64_t started;

	for (long i = 0; i < times; i++)
		p[i * SWAP_STEP * PAGE] = 1;
	madvise((void *)p, times * SWAP_STEP * PAGE, MADV_PAGEOUT);
	for (int i = 0; i < 4 && getpid() == 1 && in_memory(p, times); i++)
		press();
	started = in_memory(p, times) ? 0 : now();
	for (long i = 0; i < times && started; i++)
		(void)p[i * SWAP_STEP * PAGE];
	if (started)
		started = now() - started;
	munmap((void *)p, times * SWAP_STEP * PAGE);
	return started;
}

int main(void)
{
	static const struct {
		const char *name;
		uint64_t (*measure)(long times);
	} calls[] = {
		{ "pair", pair }, { "mprotect", protect }, { "dontneed", dontneed }, { "brk", up_and_down },
		{ "mremap", grow }, { "read", read_faults }, { "write", write_faults }, { "cow", cow_faults },
		{ "file", file_faults }, { "fork", forks }, { "execve", execs }, { "swap", swap_ins },
	};
	char line[256], name[32];
	long times;

	mkdir("/tmp", 0777);
	if (getpid() == 1)
		check(swapon(SWAP_DEVICE, 0), SWAP_DEVICE);
	neighbours();
	printf("ready\n");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		if (sscanf(line, "%31s %ld", name, &times) != 2)
			return 1;
		for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++)
			if (!strcmp(name, calls[i].name)) {
				printf("%llu\n", (unsigned long long)calls[i].measure(times));
				fflush(stdout);
			}
	}
	return 0;
}
