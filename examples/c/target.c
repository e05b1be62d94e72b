/*
 * A target: changes its page table step by step, in the memory that kerneld keeps for it. Through libkerneld.
 *
 *     cc -I shared/include -I shared/c examples/c/target.c shared/c/kerneld.c -o target && ./target
 *
 * It prints its pid and the range to watch, then one line a step, and waits for Enter before each.
 */
#define _GNU_SOURCE
#include <kerneld.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096UL
#define WINDOW 0x1000000000UL
#define WINDOW_PAGES 16UL

static struct kd kd = KD_INIT;

static void check(int is_ok, const char *what)
{
	if (is_ok)
		return;
	fprintf(stderr, "target: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void step(const char *what)
{
	int c;

	printf("next: %s\n", what);
	fflush(stdout);
	do
		c = getchar();
	while (c != '\n' && c != EOF);
	if (c == EOF)
		kd_exit(&kd, 0);
}

static uint64_t map(uint64_t addr, size_t pages, int flags, int fd)
{
	uint64_t at = kd_mmap(&kd, addr, pages * PAGE, PROT_READ | PROT_WRITE, MAP_FIXED | flags, fd, 0);

	check(at == addr, "mmap");
	return at;
}

static void copy_on_write(void)
{
	pid_t child;
	int status;

	step("fork, and the child writes: its page becomes its own");
	child = kd_fork(&kd);
	check(child >= 0, "fork");
	if (child == 0) {
		check(kd_store(&kd, WINDOW, "child", 5) == 5, "store");
		kd_exit(&kd, 7);
	}
	check(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 7, "child");
	step("write here: the page is nobody else's any more");
	check(kd_store(&kd, WINDOW, "parent", 6) == 6, "store");
}

static void file_mapping(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	check(fd >= 0, path);
	step("map a file: allocated, not anonymous");
	map(WINDOW + 12 * PAGE, 1, MAP_PRIVATE, fd);
	close(fd);
	step("read it: the page cache's frame");
	check(kd_touch(&kd, WINDOW + 12 * PAGE, 1, KD_READ) == 1, "touch");
}

int main(int argc, char **argv)
{
	char zero = 1;

	if (kd_connect(&kd, NULL) < 0) {
		fprintf(stderr, "target: no kerneld: %s\n", strerror(errno));
		return 3;
	}
	printf("pid %d window %#lx %#lx\n", getpid(), WINDOW, WINDOW + WINDOW_PAGES * PAGE);
	step("mmap 8 pages: allocated, anonymous, no frame");
	map(WINDOW, 8, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	step("the first write: a frame of its own");
	check(kd_store(&kd, WINDOW, "hello", 5) == 5, "store");
	step("the first read of another page: the zero page");
	check(kd_load(&kd, WINDOW + PAGE, &zero, 1) == 1 && zero == 0, "load");
	step("munmap two pages in the middle");
	check(kd_munmap(&kd, WINDOW + 4 * PAGE, 2 * PAGE) == 0, "munmap");
	step("mprotect the first page: read-only");
	check(kd_mprotect(&kd, WINDOW, PAGE, PROT_READ) == 0, "mprotect");
	step("and writable again");
	check(kd_mprotect(&kd, WINDOW, PAGE, PROT_READ | PROT_WRITE) == 0, "mprotect");
	copy_on_write();
	file_mapping(argc > 1 ? argv[1] : argv[0]);
	step("exit: every entry loses its flags");
	kd_exit(&kd, 0);
}
