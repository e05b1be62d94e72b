/* What memory `entries` may be, and what becomes of it; who may call at all. Ends with 0, or says which line does not hold.
   Its target is itself. With the word `refused` it may not call; with `dropped` it gives its rights up on the way. */
#define _GNU_SOURCE
#include <linux/shadowpt.h>

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096UL
#define RW (PROT_READ | PROT_WRITE)
#define HERE(what) require((what), #what, __LINE__)
#define FAILS(error, ...) (errno = 0, syscall(__VA_ARGS__) == -1 && errno == (error))
#define OPEN __NR_shadowpt_open
#define CLOSE __NR_shadowpt_close
#define START __NR_shadowpt_start
#define STOP __NR_shadowpt_stop

#ifdef __NR_shadowpt_page_contents
#define CONTENTS_FAIL(error) FAILS(error, __NR_shadowpt_page_contents, 1UL, page)
#else /* fall 2025 has no such call */
#define CONTENTS_FAIL(error) (page[0] == 0)
#endif

static struct user_shadow_pt table;
static struct shadow_pte row;

static void require(int holds, const char *what, int line)
{
	if (holds)
		return;
	fprintf(stderr, "entries_check.c:%d: %s (errno %d: %s)\n", line, what, errno, strerror(errno));
	_exit(1);
}

static int open_at(void *entries, unsigned long start, unsigned long end)
{
	table.start_vaddr = start;
	table.end_vaddr = end;
	table.entries = entries;
	return (int)syscall(OPEN, getpid(), &table);
}

/* Whether memory can be read, without a signal. */
static int is_readable(const void *at)
{
	int fds[2], ok;

	HERE(pipe(fds) == 0);
	ok = write(fds[1], at, 1) == 1;
	close(fds[0]);
	close(fds[1]);
	return ok;
}

static char *shown(const void *at)
{
	static char line[512];
	unsigned long start, end;
	FILE *maps = fopen("/proc/self/maps", "r");

	while (fgets(line, sizeof(line), maps) != NULL)
		if (sscanf(line, "%lx-%lx", &start, &end) == 2 && start <= (uintptr_t)at && (uintptr_t)at < end)
			break;
	fclose(maps);
	return strchr(line, ' ') + 1;
}

static void kinds_of_memory(void)
{
	int zero = open("/dev/zero", O_RDWR);
	struct { int flags, fd; const char *after; } kinds[] = {
		{ MAP_PRIVATE | MAP_ANONYMOUS, -1, "rw-p" },
		{ MAP_SHARED | MAP_ANONYMOUS, -1, "rw-s" },
		{ MAP_PRIVATE, zero, "rw-p" },
		{ MAP_SHARED, zero, "rw-s" },
	};

	for (size_t i = 0; i < 4; i++) {
		struct shadow_pte *entries = mmap(NULL, PAGE, RW, kinds[i].flags, kinds[i].fd, 0);

		HERE(open_at(entries, (uintptr_t)&row & -PAGE, ((uintptr_t)&row & -PAGE) + PAGE) == 0);
		HERE(syscall(START) == 0 && entries[0].vaddr == ((uintptr_t)&row & -PAGE));
		HERE(syscall(CLOSE) == 0 && entries[0].vaddr == 0 && strncmp(shown(entries), kinds[i].after, 4) == 0);
		entries[0].pfn = 5;
		HERE(open_at(entries, 0, PAGE) == -1 && errno == EINVAL && entries[0].pfn == 5);
		munmap(entries, PAGE);
	}
	close(zero);
}

static void without_access(void)
{
	struct shadow_pte *entries = mmap(NULL, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	HERE(open_at(entries, (uintptr_t)entries, (uintptr_t)entries + PAGE) == 0 && syscall(START) == 0);
	HERE(!is_readable(entries));
	HERE(mprotect(entries, PAGE, PROT_READ) == 0 && entries[0].vaddr == (uintptr_t)entries);
	HERE(syscall(CLOSE) == 0 && !is_readable(entries) && strncmp(shown(entries), "---p", 4) == 0);
	munmap(entries, PAGE);
}

static void moved(void)
{
	struct shadow_pte *entries = mmap(NULL, PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *to;
	char *room = mmap(NULL, 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	HERE(open_at(entries, (uintptr_t)entries, (uintptr_t)entries + PAGE) == 0 && syscall(START) == 0);
	to = mremap(entries, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, room);
	HERE(to == (void *)room && to[0].vaddr == (uintptr_t)entries);
	HERE(syscall(CLOSE) == 0 && !is_readable(entries));
	HERE(to[0].vaddr == 0 && strncmp(shown(to), "rw-p 00000000 00:00 0", 21) == 0);
	to[0].vaddr = 5;
	munmap(room, 2 * PAGE);
}

/* remap_pfn_range() maps every page of the table before it returns. */
static void mapped_at_once(void)
{
	unsigned long start;
	char *memory = mmap(NULL, 16 * PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	start = (uintptr_t)memory;
	HERE(open_at(memory, start, start + 700 * PAGE) == 0 && syscall(START) == 0);
	for (size_t i = 0; i < (700 * sizeof(row) + PAGE - 1) / PAGE; i++)
		HERE(((struct shadow_pte *)memory)[i].state_flags & SPTE_PTE_MAPPED);
	HERE(syscall(CLOSE) == 0);
	munmap(memory, 16 * PAGE);
}

static void in_a_child_of_vfork(void)
{
	struct shadow_pte *entries = mmap(NULL, PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	HERE(open_at(entries, (uintptr_t)entries, (uintptr_t)entries + PAGE) == 0 && syscall(START) == 0);
	for (int i = 0; i < 3; i++) {
		int status;
		pid_t child = vfork();

		if (child == 0)
			_exit(FAILS(EPERM, CLOSE) && FAILS(EPERM, START) ? 0 : 1);
		HERE(waitpid(child, &status, 0) == child && status == 0);
		HERE(entries[0].vaddr == (uintptr_t)entries && syscall(STOP) == 0 && syscall(START) == 0);
	}
	HERE(syscall(CLOSE) == 0 && entries[0].vaddr == 0);
	entries[0].vaddr = 5;
	munmap(entries, PAGE);
}

static void cut(void)
{
	size_t bytes = SPT_TABLE_BYTES(0, MAX_SPT_RANGE);
	void *entries = mmap(NULL, bytes, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	unsigned long start = 0x700000000000UL, last = 0x7ffffffff000UL;

	HERE(open_at(entries, start, 0x800000000000UL) == 0 && table.end_vaddr == start + MAX_SPT_RANGE);
	HERE(syscall(CLOSE) == 0);
	HERE(open_at(entries, start, 0xfffffffffffff000UL) == 0 && table.end_vaddr == start + MAX_SPT_RANGE);
	HERE(syscall(CLOSE) == 0);
	HERE(open_at(entries, last - PAGE, last + PAGE) == -1 && errno == EINVAL);
	HERE(open_at(entries, last - MAX_SPT_RANGE, last + PAGE) == 0 && table.end_vaddr == last && syscall(CLOSE) == 0);
	HERE(open_at(entries, 0xfffffffffffff000UL - PAGE, 0xfffffffffffff000UL) == -1 && errno == EINVAL);
	munmap(entries, bytes);
}

static void refused(void)
{
	static unsigned char page[PAGE];

	table.entries = mmap(NULL, PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	HERE(FAILS(EPERM, OPEN, getpid(), &table) && FAILS(EPERM, OPEN, -1, NULL));
	HERE(CONTENTS_FAIL(EPERM));
	HERE(FAILS(EPERM, CLOSE) && FAILS(EPERM, START) && FAILS(EPERM, STOP));
}

static void dropped(void)
{
	void *entries = mmap(NULL, PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	static unsigned char page[PAGE];

	HERE(open_at(entries, 0x1000, 0x2000) == 0 && syscall(CLOSE) == 0);
	HERE(seteuid(65534) == 0);
	HERE(open_at(entries, 0x1000, 0x2000) == -1 && errno == EPERM);
	HERE(CONTENTS_FAIL(EPERM));
	HERE(seteuid(0) == 0 && open_at(entries, 0x1000, 0x2000) == 0);
	/* What is open is its opener's to close. */
	HERE(seteuid(65534) == 0 && syscall(CLOSE) == 0);
}

int main(int argc, char **argv)
{
	if (argc > 1 && strcmp(argv[1], "refused") == 0) {
		HERE(geteuid() != 0 || seteuid(65534) == 0);
		refused();
		return 0;
	}
	if (argc > 1) {
		dropped();
		return 0;
	}
	kinds_of_memory();
	without_access();
	moved();
	mapped_at_once();
	in_a_child_of_vfork();
	cut();
	return 0;
}
