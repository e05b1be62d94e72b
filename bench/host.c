/* The host's side of the benchmark: the same memory calls, made in C on the real kernel.
 *
 * Reads commands from stdin, one a line, and answers each with the nanoseconds that it took, on one line. Setting up
 * and taking down are outside what is timed. Memory is in 4 KiB pages (no THP), as the simulated machine's is.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/fs.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "timing.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef PAGEMAP_SCAN /* headers older than Linux 6.7: include/uapi/linux/fs.h */
#define PAGE_IS_FILE (1 << 2)
#define PAGE_IS_PRESENT (1 << 3)
#define PAGE_IS_SWAPPED (1 << 4)
#define PAGE_IS_PFNZERO (1 << 5)
struct page_region {
	uint64_t start, end, categories;
};
struct pm_scan_arg {
	uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
	uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
#define PAGEMAP_SCAN _IOWR('f', 16, struct pm_scan_arg)
#endif
#define PAGE 4096UL

static char *map(size_t bytes)
{
	char *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	check(p == MAP_FAILED, "mmap");
	check(madvise(p, bytes, MADV_NOHUGEPAGE), "madvise");
	return p;
}

static void answer(uint64_t started)
{
	printf("%llu\n", (unsigned long long)(now() - started));
	fflush(stdout);
}

/* A store to each of `pages` fresh pages. */
static void fault(size_t pages)
{
	char *p = map(pages * PAGE);
	uint64_t started = now();

	for (size_t i = 0; i < pages; i++)
		((volatile char *)p)[i * PAGE] = 1;
	answer(started);
	munmap(p, pages * PAGE);
}

/* One call on `bytes` of memory, all of it populated before unless the call is what populates it. */
static void one_call(const char *name, size_t bytes)
{
	char *p = map(bytes), *free_place = NULL;
	uint64_t started;

	if (strcmp(name, "populate"))
		check(madvise(p, bytes, MADV_POPULATE_WRITE), "populate");
	if (!strcmp(name, "mremap")) {
		free_place = map(bytes);
		munmap(free_place, bytes);
	}
	started = now();
	if (!strcmp(name, "populate")) {
		check(madvise(p, bytes, MADV_POPULATE_WRITE), "populate");
	} else if (!strcmp(name, "munmap")) {
		munmap(p, bytes);
		answer(started);
		return;
	} else if (!strcmp(name, "fork")) {
		pid_t pid = fork();

		if (pid == 0)
			_exit(0);
		waitpid(pid, NULL, 0);
	} else if (!strcmp(name, "mprotect")) {
		check(mprotect(p, bytes, PROT_READ), "mprotect");
	} else if (!strcmp(name, "dontneed")) {
		check(madvise(p, bytes, MADV_DONTNEED), "dontneed");
	} else if (!strcmp(name, "mremap")) {
		p = mremap(p, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, free_place);
		check(p == MAP_FAILED, "mremap");
	}
	answer(started);
	munmap(p, bytes);
}

/* What is mapped in [start, end) of a process, `times` times: the PAGEMAP_SCAN call, or the entries of its pagemap. */
static void observe(const char *name, int pid, uint64_t start, uint64_t end, long times)
{
	static uint64_t entries[1 << 16];
	char path[64];
	uint64_t started;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/pagemap", pid);
	fd = open(path, O_RDONLY);
	check(fd < 0, path);
	started = now();
	for (long i = 0; i < times; i++) {
		if (!strcmp(name, "pagemap")) {
			size_t bytes = (end - start) / PAGE * 8;

			check(pread(fd, entries, bytes, start / PAGE * 8) != (ssize_t)bytes, "pread");
		} else {
			static struct page_region regions[1 << 12];
			struct pm_scan_arg arg = {
				.size = sizeof(arg), .start = start, .end = end,
				.vec = (uintptr_t)regions, .vec_len = 1 << 12,
				.category_anyof_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
				.return_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED | PAGE_IS_FILE | PAGE_IS_PFNZERO,
			};

			check(ioctl(fd, PAGEMAP_SCAN, &arg) < 0, "PAGEMAP_SCAN");
		}
	}
	answer(started);
	close(fd);
}

int main(void)
{
	char line[256], name[32];
	unsigned long long a = 0, b = 0, c = 0, d = 0;

	while (fgets(line, sizeof(line), stdin)) {
		if (sscanf(line, "%31s %llu %llu %llu %llu", name, &a, &b, &c, &d) < 2)
			return 1;
		if (!strcmp(name, "fault"))
			fault(a);
		else if (!strcmp(name, "pagemap") || !strcmp(name, "scan"))
			observe(name, a, b, c, d);
		else
			one_call(name, a);
	}
	return 0;
}
