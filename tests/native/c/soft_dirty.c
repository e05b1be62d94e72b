/* Soft-dirty pages: which pages /proc/self/pagemap shows as written after a write of 4 to /proc/PID/clear_refs. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096UL
#define PAGES 6
#define THREADS 4
#define MUCH 2048UL

static int pagemap;

static void clear(void)
{
	int fd = open("/proc/self/clear_refs", O_WRONLY);

	if (write(fd, "4", 1) != 1)
		perror("clear_refs");
	close(fd);
}

static int is_soft_dirty(const char *addr)
{
	uint64_t word = 0;

	if (pread(pagemap, &word, 8, (off_t)((uintptr_t)addr / PAGE * 8)) != 8)
		perror("pagemap");
	return word >> 55 & 1;
}

static void show(const char *what, const char *addr)
{
	printf("%s:", what);
	for (int i = 0; i < PAGES; i++)
		printf(" %d", is_soft_dirty(addr + i * PAGE));
	putchar('\n');
}

static void show_flag(const char *what, const char *addr)
{
	char line[512];
	unsigned long start, end;
	int found = 0, flag = 0;
	FILE *smaps = fopen("/proc/self/smaps", "r");

	while (fgets(line, sizeof line, smaps)) {
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			found = start <= (uintptr_t)addr && (uintptr_t)addr < end;
		if (found && !strncmp(line, "VmFlags:", 8))
			flag = strstr(line, " sd") != 0;
	}
	fclose(smaps);
	printf("%s: sd %d\n", what, flag);
}

static void play(const char *what, int flags, int fd)
{
	char *addr = mmap(0, PAGES * PAGE, PROT_READ | PROT_WRITE, flags, fd, 0);
	volatile char seen;

	printf("%s\n", what);
	addr[0] = addr[PAGE] = 1;
	seen = addr[2 * PAGE];
	show("new", addr);
	show_flag("new", addr);
	clear();
	show("cleared", addr);
	show_flag("cleared", addr);
	seen = addr[0], seen = addr[2 * PAGE], seen = addr[3 * PAGE];
	show("read", addr);
	addr[PAGE] = addr[2 * PAGE] = addr[4 * PAGE] = 1;
	show("written", addr);
	mprotect(addr, PAGES * PAGE, PROT_READ);
	mprotect(addr, PAGES * PAGE, PROT_READ | PROT_WRITE);
	addr[0] = 1;
	show("written after mprotect", addr);
	if (pread(open("/proc/self/stat", O_RDONLY), addr + 3 * PAGE, 1, 0) != 1)
		perror("pread");
	show("written by a system call", addr);
	fflush(stdout);
	if (!fork()) {
		addr[5 * PAGE] = 1;
		show("its parent, from a child", addr);
		pagemap = open("/proc/self/pagemap", O_RDONLY);
		show("in a child", addr);
		fflush(stdout);
		_exit(0);
	}
	wait(0);
	seen = addr[5 * PAGE];
	show("its parent", addr);
	addr = mremap(addr, PAGES * PAGE, PAGES * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
		      mmap(0, PAGES * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	show("moved", addr);
	clear();
	madvise(addr, PAGE, MADV_DONTNEED);
	show("cleared again", addr);
	munmap(addr, PAGES * PAGE);
	(void)seen;
}

static char *much;

static void *write_some(void *number)
{
	for (unsigned long i = (uintptr_t)number; i < MUCH; i += 2 * THREADS)
		much[i * PAGE]++;
	return 0;
}

/* Each thread writes to pages of its own, which it has written to before: its processor may do so without a fault. */
static void play_threads(void)
{
	pthread_t threads[THREADS];
	int wrong = 0;

	/* Between pages without rights: a thread's stack that merges with it would make all of it soft-dirty. */
	much = (char *)mmap(0, (MUCH + 2) * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) + PAGE;
	mprotect(much, MUCH * PAGE, PROT_READ | PROT_WRITE);
	madvise(much, MUCH * PAGE, MADV_NOHUGEPAGE); /* a huge page is soft-dirty as a whole */
	memset(much, 1, MUCH * PAGE);
	for (int round = 0; round < 5; round++) {
		clear();
		for (uintptr_t i = 0; i < THREADS; i++)
			pthread_create(&threads[i], 0, write_some, (void *)(i + round % 2 * THREADS));
		for (int i = 0; i < THREADS; i++)
			pthread_join(threads[i], 0);
		for (unsigned long i = 0; i < MUCH; i++)
			wrong += is_soft_dirty(much + i * PAGE) != (i / THREADS % 2 == (unsigned long)round % 2);
	}
	printf("threads: %d wrong\n", wrong);
}

int main(int argc, char **argv)
{
	int file = open(argv[1], O_RDWR | O_CREAT, 0600), memory = memfd_create("memory", 0);

	pagemap = open("/proc/self/pagemap", O_RDONLY);
	if (argc < 2 || ftruncate(file, PAGES * PAGE) || ftruncate(memory, PAGES * PAGE))
		return 1;
	play("anonymous", MAP_PRIVATE | MAP_ANONYMOUS, -1);
	play("shared", MAP_SHARED | MAP_ANONYMOUS, -1);
	play("memory file", MAP_SHARED, memory);
	play("file", MAP_SHARED, file);
	play("private file", MAP_PRIVATE, file);
	play_threads();
	return 0;
}
