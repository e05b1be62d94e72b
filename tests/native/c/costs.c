/* What a system call, a first write and a mapping cost, in microseconds: medians. See docs/programs.md. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define ROUNDS 2001
#define CALLS 20
#define P 4096L

static double times[ROUNDS];

static double now(void)
{
	struct timespec time;
	syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1e6 + time.tv_nsec / 1e3;
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return x < y ? -1 : x > y;
}

static void say(const char *what)
{
	qsort(times, ROUNDS, sizeof *times, compare);
	printf("%s: %.2f us\n", what, times[ROUNDS / 2]);
}

int main(void)
{
	char byte, *p;
	for (int i = 0; i < ROUNDS; i++) {
		double begun = now();
		for (int k = 0; k < CALLS; k++)
			syscall(SYS_getcwd, &byte, 0);
		times[i] = (now() - begun) / CALLS;
	}
	say("a system call");
	p = mmap(0, ROUNDS * P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (int i = 0; i < ROUNDS; i++) {
		double begun = now();
		p[i * P] = 1;
		times[i] = now() - begun;
	}
	say("a first write");
	for (int i = 0; i < ROUNDS; i++) {
		double begun = now();
		p = mmap(0, P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		munmap(p, P);
		times[i] = now() - begun;
	}
	say("mmap and munmap");
	return 0;
}
