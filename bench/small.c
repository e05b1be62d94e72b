/* Small memory calls, made in C: on the host's kernel, and as the first process of a User-Mode Linux.
 *
 * Reads commands from stdin, one a line: a name and how often. Answers each with the nanoseconds that all of them took, on
 * one line. Setting up is outside of what is timed. Needs no library but libc, no /proc, and writes no file but FILE_NAME.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "timing.h"

#define PAGE 4096UL
#define FILE_NAME "/tmp/kerneld-bench-file"

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

int main(void)
{
	static const struct {
		const char *name;
		uint64_t (*measure)(long times);
	} calls[] = {
		{ "pair", pair }, { "mprotect", protect }, { "dontneed", dontneed }, { "brk", up_and_down },
		{ "mremap", grow }, { "read", read_faults }, { "write", write_faults }, { "cow", cow_faults },
		{ "file", file_faults }, { "fork", forks },
	};
	char line[256], name[32];
	long times;

	mkdir("/tmp", 0777);
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
