/* The system calls of each semester, the table of this process, and what the table must show. */
#define _GNU_SOURCE
#include "kit.h"

#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

const struct abi *abi;
long page_bytes;
struct table now;
static int is_open;

static long call(long nr, long first, long second)
{
	if (nr < 0)
		return 0;
	return syscall(nr, first, second, 0L) < 0 ? -errno : 0;
}

long sp_open(pid_t target, void *table)
{
	return call(abi->open, target, (long)(intptr_t)table);
}

long sp_close(void)
{
	long ret = call(abi->close, 0, 0);

	if (ret == 0)
		is_open = 0;
	return ret;
}

long sp_start(void)
{
	return call(abi->start, 0, 0);
}

long sp_stop(void)
{
	return call(abi->stop, 0, 0);
}

long sp_contents(ulong_t pfn, void *buffer)
{
	return call(abi->contents, (long)pfn, (long)(intptr_t)buffer);
}

void close_table(void)
{
	if (is_open)
		sp_close();
}

void *fresh(ulong_t pages)
{
	void *at = mmap(NULL, pages * PAGE, RW, ANON, -1, 0);

	if (at == MAP_FAILED)
		skipped("no memory for the entries: %s", strerror(errno));
	/* Never one huge page: the kernel could not put its own pages into a part of it. */
	madvise(at, pages * PAGE, MADV_NOHUGEPAGE);
	return at;
}

long try_open(pid_t target, ulong_t start, ulong_t pages)
{
	ulong_t bytes = (pages < MAX_PAGES ? pages : MAX_PAGES) * sizeof(struct spte);
	long ret;

	now = (struct table){ start, start + pages * PAGE, fresh((bytes + PAGE - 1) / PAGE) };
	ret = sp_open(target, &now);
	is_open = ret == 0;
	return ret;
}

void open_table(pid_t target, ulong_t start, ulong_t pages)
{
	expect_ret(try_open(target, start, pages), 0, "open");
}

void watch(pid_t target, ulong_t start, ulong_t pages)
{
	open_table(target, start, pages);
	expect_ret(sp_start(), 0, "start");
}

volatile struct spte *entry_of(ulong_t vaddr)
{
	return &now.entries[(vaddr - now.start) / PAGE];
}

/* ---- What is true: /proc ---- */

static unsigned long long pagemap(pid_t pid, ulong_t vaddr)
{
	unsigned long long word = 0;
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/pagemap", (int)pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	if (pread(fd, &word, sizeof(word), (off_t)(vaddr / PAGE * sizeof(word))) != (ssize_t)sizeof(word))
		word = 0;
	close(fd);
	return word;
}

int pagemap_is_present(pid_t pid, ulong_t vaddr)
{
	return (int)(pagemap(pid, vaddr) >> 63);
}

ulong_t pagemap_pfn(pid_t pid, ulong_t vaddr)
{
	unsigned long long word = pagemap(pid, vaddr);

	return word >> 63 ? (ulong_t)(word & ((1ULL << 55) - 1)) : 0;
}

void need_pfns(void)
{
	volatile char *at = fresh(1);

	*at = 1;
	if (!pagemap_pfn(getpid(), (ulong_t)at))
		skipped("/proc/PID/pagemap hides frame numbers here: run this as root");
}

void range_of(pid_t pid, const char *name, ulong_t *start, ulong_t *end)
{
	char path[64], line[512];
	FILE *file;

	*start = *end = 0;
	snprintf(path, sizeof(path), "/proc/%d/maps", (int)pid);
	file = fopen(path, "re");
	while (file && fgets(line, sizeof(line), file))
		if (strstr(line, name) && sscanf(line, "%lx-%lx", start, end) == 2)
			break;
	if (file)
		fclose(file);
	if (!*end)
		skipped("process %d has no mapping %s", (int)pid, name);
}

/* ---- What the table shows ---- */

const char *state_text(ulong_t state)
{
	static char texts[4][96];
	static int turn;
	char *text = texts[turn++ & 3];

	snprintf(text, sizeof(texts[0]), "%s%s%s", state & abi->allocated ? "ALLOCATED " : "",
		 state & abi->anonymous ? "ANONYMOUS " : "", state & abi->mapped ? "MAPPED " : "");
	if (!*text)
		strcpy(text, "no flag ");
	text[strlen(text) - 1] = '\0';
	return text;
}

/* Write what is wrong with an entry to `wrong`, or return 1. */
static int is_right(pid_t target, ulong_t vaddr, ulong_t state, char *wrong, size_t bytes)
{
	volatile struct spte *entry = entry_of(vaddr);
	ulong_t pfn = entry->pfn, has = entry->state & ~abi->writeable, at = entry->vaddr, frame;

	if (at != vaddr)
		return snprintf(wrong, bytes, "entry %lu has vaddr %#lx, not %#lx", (vaddr - now.start) / PAGE, at, vaddr), 0;
	if (has != state)
		return snprintf(wrong, bytes, "the entry of %#lx is %s, not %s", vaddr, state_text(has), state_text(state)), 0;
	if (!(state & MAPPED))
		return !pfn || (snprintf(wrong, bytes, "the entry of %#lx has pfn %#lx and no frame", vaddr, pfn), 0);
	frame = pagemap_pfn(target, vaddr);
	/* 0: a process without privilege may not see the frame. */
	return !frame || pfn == frame ||
	       (snprintf(wrong, bytes, "the entry of %#lx has pfn %#lx; pagemap says %#lx", vaddr, pfn, frame), 0);
}

static void expect_states(pid_t target, ulong_t vaddr, ulong_t pages, ulong_t state, const ulong_t *states)
{
	char wrong[256] = "";
	ulong_t page;

	begin_patience();
	do {
		for (page = 0; page < pages; page++)
			if (!is_right(target, vaddr + page * PAGE, states ? states[page] : state, wrong, sizeof(wrong)))
				break;
		if (page == pages) {
			expect_that(1, "all entries are right");
			return;
		}
	} while (is_in_time());
	failed("%s", wrong);
}

void expect(pid_t target, ulong_t vaddr, ulong_t pages, ulong_t state)
{
	expect_states(target, vaddr, pages, state, NULL);
}

void expect_truth(pid_t target)
{
	static ulong_t states[MAX_PAGES];
	ulong_t start, end, inode, pages = (now.end - now.start) / PAGE;
	char path[64], line[512];
	FILE *file;

	memset(states, 0, sizeof(states));
	snprintf(path, sizeof(path), "/proc/%d/maps", (int)target);
	file = fopen(path, "re");
	while (file && fgets(line, sizeof(line), file)) {
		if (sscanf(line, "%lx-%lx %*s %*x %*s %lu", &start, &end, &inode) != 3)
			continue;
		for (ulong_t at = start > now.start ? start : now.start; at < end && at < now.end; at += PAGE)
			states[(at - now.start) / PAGE] =
				(inode ? ALLOCATED : ANONYMOUS) | (pagemap_is_present(target, at) ? MAPPED : 0);
	}
	if (file)
		fclose(file);
	expect_states(target, now.start, pages, 0, states);
}

void expect_soon_open(const char *after)
{
	struct puppet target = new_puppet();
	long ret;

	begin_patience();
	do {
		ret = try_open(target.pid, WINDOW, 4);
		if (ret == 0) {
			expect_ret(sp_close(), 0, "close");
			end_puppet(&target);
			return;
		}
	} while (is_in_time());
	failed("%s, open gives %s: the table is not free", after, errno_text((int)-ret));
}
