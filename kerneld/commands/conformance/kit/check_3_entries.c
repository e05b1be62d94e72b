/* `entries`: the memory over which the table is mapped. */
#define _GNU_SOURCE
#include "kit.h"

#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PLACE .place = "Creating the shadow page table: Remapping Details"
#define CHECKED .place = "Creating the shadow page table: Input Checking"

static long open_at(pid_t target, ulong_t pages, void *entries)
{
	now = (struct table){ WINDOW, WINDOW + pages * PAGE, entries };
	return sp_open(target, &now);
}

/* Open at `entries`, start, and see one page of the target come. */
static void works_at(void *entries, ulong_t pages)
{
	struct puppet target = new_puppet();

	p_mmap(&target, WINDOW, 1, RW, ANON);
	expect_ret(open_at(target.pid, pages, entries), 0, "open");
	expect_ret(sp_start(), 0, "start");
	expect(target.pid, WINDOW, 1, ANONYMOUS);
	p_write(&target, WINDOW, 1, 1);
	expect(target.pid, WINDOW, 1, ANONYMOUS | MAPPED);
}

CHECK(entries_mmap, PLACE, .rule = "entries may be memory of mmap", .did = "opened 8 pages over a fresh mmap, and tracked a write",
      .expected = "the table shows it", .mistake = "the pages are mapped at another address, or never filled",
      .hint = "remap_pfn_range(vma, entries, …) after the VMA is the right one", .points = 1)
{
	works_at(fresh(1), 8);
}

CHECK(entries_memalign, PLACE, .rule = "entries may be memory of posix_memalign",
      .did = "opened over 64 pages of posix_memalign that nobody touched", .expected = "the table shows a write of the target",
      .mistake = "the VMA is larger than the table, and all of it is remapped or refused",
      .hint = "vma_modify() splits the VMA at entries and at its end", .points = 1)
{
	void *at;

	if (posix_memalign(&at, PAGE, 64 * PAGE))
		skipped("no memory");
	works_at(at, 8);
}

CHECK(entries_static, PLACE, .rule = "entries may be a static array, aligned to a page",
      .did = "opened over an untouched page of .bss", .expected = "the table shows a write of the target",
      .mistake = "VMAs of the program's file are refused, though .bss is anonymous",
      .hint = "Look at the pages, not at the name of the mapping", .points = 1)
{
	static char array[64 * 4096] __attribute__((aligned(65536)));

	works_at(array + 32 * 4096, 8);
}

CHECK(entries_inside, PLACE, .rule = "entries may lie inside a larger mapping, whose other pages keep their bytes",
      .did = "opened over page 4 of 9 pages, with bytes in pages 3 and 5",
      .expected = "the table works, and pages 3 and 5 have their bytes", .mistake = "the whole VMA is remapped or zapped",
      .hint = "vma_modify() for [entries, entries + size) first", .points = 2)
{
	char *at = fresh(9);

	at[3 * PAGE] = at[4 * PAGE - 1] = 'a';
	at[5 * PAGE] = 'b';
	works_at(at + 4 * PAGE, 8);
	expect_that(at[3 * PAGE] == 'a' && at[4 * PAGE - 1] == 'a', "the page before entries has lost its bytes");
	expect_that(at[5 * PAGE] == 'b', "the page after entries has lost its bytes");
	expect_ret(sp_close(), 0, "close");
	expect_that(at[3 * PAGE] == 'a' && at[5 * PAGE] == 'b', "close took the bytes of the pages beside entries");
}

CHECK(entries_two_pages, PLACE, .rule = "A table longer than a page is mapped with all its pages",
      .did = "opened 2,048 pages (a table of 12 pages), and touched the first, middle and last page of the range",
      .expected = "each of the three entries", .mistake = "only the first page of the table is remapped",
      .hint = "alloc_pages_exact() of the rounded size, and the same size for remap_pfn_range()", .points = 2)
{
	struct puppet target = new_puppet();

	watch(target.pid, WINDOW, MAX_PAGES);
	for (ulong_t at = 0; at < MAX_PAGES; at += MAX_PAGES / 2 - 1) {
		p_mmap(&target, WINDOW + at * PAGE, 1, RW, ANON);
		p_write(&target, WINDOW + at * PAGE, 1, 1);
		expect(target.pid, WINDOW + at * PAGE, 1, ANONYMOUS | MAPPED);
	}
}

CHECK(entries_touched, CHECKED, .rule = "entries that have physical pages already give EINVAL",
      .did = "wrote to the first page of entries, then opened", .expected = "-EINVAL",
      .mistake = "remap_pfn_range() over present entries (a BUG in the kernel)", .hint = "Walk the caller's page table: pte_none()",
      .points = 2)
{
	struct puppet target = new_puppet();
	char *at = fresh(12);

	at[0] = 1;
	expect_ret(open_at(target.pid, MAX_PAGES, at), -EINVAL, "open over a touched page");
}

CHECK(entries_touched_last, CHECKED, .rule = "No page of entries may have a physical page",
      .did = "wrote to the last of the 12 pages of entries, then opened", .expected = "-EINVAL",
      .mistake = "only the first page is looked at", .hint = "Look at every page of the table", .points = 1)
{
	struct puppet target = new_puppet();
	char *at = fresh(12);

	at[11 * PAGE] = 1;
	expect_ret(open_at(target.pid, MAX_PAGES, at), -EINVAL, "open over entries whose last page was touched");
}

CHECK(entries_too_small, CHECKED, .rule = "entries too small for the table give EINVAL",
      .did = "opened 2,048 pages with 11 of 12 pages mapped", .expected = "-EINVAL",
      .mistake = "only the address is looked at, not the VMA's end", .hint = "vma->vm_end - entries", .points = 2)
{
	struct puppet target = new_puppet();
	char *at = fresh(13);

	munmap(at + 11 * PAGE, 2 * PAGE);
	expect_ret(open_at(target.pid, MAX_PAGES, at), -EINVAL, "open with 11 of 12 pages");
}

CHECK(entries_rounded_up, CHECKED, .rule = "The size of the table is rounded up to whole pages",
      .did = "opened 171 pages (4,104 bytes of entries) with one page mapped", .expected = "-EINVAL",
      .mistake = "the size is rounded down, or compared before it is rounded", .hint = "PAGE_ALIGN(count * sizeof(entry))",
      .points = 1)
{
	struct puppet target = new_puppet();
	char *at = fresh(2);

	munmap(at + PAGE, PAGE);
	expect_ret(open_at(target.pid, 171, at), -EINVAL, "open with one page for 4,104 bytes");
}

CHECK(entries_unmapped, CHECKED, .rule = "entries that are not mapped give EINVAL",
      .did = "opened over memory that had been unmapped", .expected = "-EINVAL",
      .mistake = "find_vma() returns the next VMA, which does not contain the address", .hint = "vma_lookup()", .points = 1)
{
	struct puppet target = new_puppet();
	char *at = fresh(4);

	/* find_vma() finds the page after the hole. */
	munmap(at, 2 * PAGE);
	expect_ret(open_at(target.pid, 8, at), -EINVAL, "open over unmapped memory");
}

CHECK(entries_null, CHECKED, .rule = "entries of NULL give EINVAL", .did = "opened with entries NULL", .expected = "-EINVAL",
      .mistake = "vma_lookup()'s NULL is used", .hint = "A NULL VMA is an invalid argument", .points = 1)
{
	struct puppet target = new_puppet();

	expect_ret(open_at(target.pid, 8, NULL), -EINVAL, "open with entries NULL");
}

CHECK(entries_unaligned, CHECKED, .rule = "entries that do not begin a page cannot be remapped: EINVAL",
      .did = "opened with entries 8 bytes after the begin of a page", .expected = "-EINVAL",
      .mistake = "the address is rounded, and the user reads other entries than the kernel writes",
      .hint = "remap_pfn_range() works on whole pages", .points = 1)
{
	struct puppet target = new_puppet();

	expect_ret(open_at(target.pid, 8, (char *)fresh(2) + 8), -EINVAL, "open with unaligned entries");
}

static sigjmp_buf back;

static void on_segv(int signo)
{
	siglongjmp(back, signo);
}

CHECK(entries_read_only, PLACE, .rule = "The inspector reads the kernel's table, and cannot write to it",
      .did = "stored to an entry after open", .expected = "SIGSEGV, and an entry that is unchanged",
      .mistake = "the pages are remapped with the VMA's own rights", .hint = "Clear VM_WRITE and VM_MAYWRITE, and take the page protection from these flags",
      .points = 2)
{
	struct puppet target = new_puppet();
	ulong_t before;

	watch(target.pid, WINDOW, 4);
	before = now.entries[0].state;
	signal(SIGSEGV, on_segv);
	if (sigsetjmp(back, 1) == 0) {
		now.entries[0].state = ~before;
		failed("the store succeeded: state_flags are now %#lx", now.entries[0].state);
	}
	expect_that(now.entries[0].state == before, "the entry has changed");
}

CHECK(entries_live, PLACE, .rule = "Updates reach the inspector's memory without a call",
      .did = "read an entry through a pointer taken before open, while the target wrote to the page",
      .expected = "the entry becomes MAPPED, with no call between", .mistake = "the table is copied at a call",
      .hint = "The inspector's pages must be the kernel's pages", .points = 2)
{
	struct puppet target = new_puppet();
	volatile struct spte *entries = fresh(1);

	p_mmap(&target, WINDOW, 4, RW, ANON);
	expect_ret(open_at(target.pid, 4, (void *)entries), 0, "open");
	expect_ret(sp_start(), 0, "start");
	p_write(&target, WINDOW + 2 * PAGE, 1, 1);
	begin_patience();
	while (!(entries[2].state & MAPPED) && is_in_time())
		;
	expect_that(entries[2].state & MAPPED, "the entry stays %s", state_text(entries[2].state));
}

CHECK(entries_vaddrs, .place = "Defining the shadow page table", .rule = "Each entry has the address of the begin of its page",
      .did = "opened and started 2,048 pages, and read every vaddr", .expected = "start + 4096 * index",
      .mistake = "vaddr is only written for pages that change", .hint = "Fill vaddr of the whole range at start", .points = 1)
{
	struct puppet target = new_puppet();

	watch(target.pid, WINDOW, MAX_PAGES);
	expect(target.pid, WINDOW, MAX_PAGES, 0);
}
