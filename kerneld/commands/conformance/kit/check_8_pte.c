/* Frames come and go: MAPPED and pfn. Each comparison also compares the pfn with /proc/PID/pagemap. */
#define _GNU_SOURCE
#include "kit.h"

#include <sys/mman.h>
#include <sys/syscall.h>

#define PLACE .place = "When PTEs are updated"

/* A target with 8 anonymous pages at WINDOW, of which the first `written` have frames; watched. */
static struct puppet watched(ulong_t written)
{
	struct puppet target = new_puppet();

	p_mmap(&target, WINDOW, 8, RW, ANON);
	p_write(&target, WINDOW, written, 1);
	watch(target.pid, WINDOW, 8);
	expect(target.pid, WINDOW, written, ANONYMOUS | MAPPED);
	expect(target.pid, WINDOW + written * PAGE, 8 - written, ANONYMOUS);
	return target;
}

CHECK(pte_write, PLACE, .rule = "The first write to a page sets MAPPED and the frame", .did = "had the target write to one page",
      .expected = "MAPPED, and the pfn of pagemap", .mistake = "there is no hook where a fault sets the entry", .hint = "do_anonymous_page(), set_pte_range()",
      .points = 3)
{
	struct puppet target = watched(0);

	p_write(&target, WINDOW + 3 * PAGE, 1, 1);
	expect(target.pid, WINDOW + 3 * PAGE, 1, ANONYMOUS | MAPPED);
}

CHECK(pte_neighbours, PLACE, .rule = "A fault changes the entry of its page alone", .did = "had the target write to page 3 of 8",
      .expected = "entry 3 MAPPED, the others not", .mistake = "the whole VMA is marked, or the index is wrong", .hint = "Update [vaddr, vaddr + PAGE_SIZE)",
      .points = 1)
{
	struct puppet target = watched(0);

	p_write(&target, WINDOW + 3 * PAGE, 1, 1);
	expect(target.pid, WINDOW + 3 * PAGE, 1, ANONYMOUS | MAPPED);
	expect(target.pid, WINDOW, 3, ANONYMOUS);
	expect(target.pid, WINDOW + 4 * PAGE, 4, ANONYMOUS);
}

CHECK(pte_read, PLACE, .rule = "A read maps the zero page: that is a frame too", .did = "had the target read an untouched page",
      .expected = "MAPPED, with the pfn of the zero page", .mistake = "only the branch of do_anonymous_page() that writes is hooked",
      .hint = "pte_none() is the test, not who owns the frame", .points = 2)
{
	struct puppet target = watched(0);

	p_read(&target, WINDOW + 2 * PAGE, 1);
	expect(target.pid, WINDOW + 2 * PAGE, 1, ANONYMOUS | MAPPED);
}

CHECK(pte_write_after_read, PLACE, .rule = "A write to a page that shows the zero page gives it a frame of its own",
      .did = "had the target read a page, then write to it", .expected = "MAPPED, with another pfn than before",
      .mistake = "a change from one frame to another has no hook", .hint = "wp_page_copy()", .points = 2)
{
	struct puppet target = watched(0);
	ulong_t zero;

	need_pfns();
	p_read(&target, WINDOW, 1);
	expect(target.pid, WINDOW, 1, ANONYMOUS | MAPPED);
	zero = now.entries[0].pfn;
	p_write(&target, WINDOW, 1, 1);
	expect(target.pid, WINDOW, 1, ANONYMOUS | MAPPED);
	expect_that(now.entries[0].pfn != zero, "the pfn is still %#lx, the zero page's", zero);
}

CHECK(pte_cow, PLACE, .rule = "Copy-on-write gives the writer a new frame", .did = "forked in the target, then had the target write to the shared page",
      .expected = "MAPPED, with the new pfn", .mistake = "copy-on-write has no hook", .hint = "wp_page_copy() sets the new entry", .points = 3)
{
	struct puppet target, child;
	ulong_t before;

	need_pfns();
	target = watched(2);
	before = now.entries[0].pfn;
	child = p_fork(&target);
	p_write(&target, WINDOW, 1, 2);
	expect(target.pid, WINDOW, 2, ANONYMOUS | MAPPED);
	expect_that(now.entries[0].pfn != before, "the pfn is still %#lx, the child's frame", before);
	end_puppet(&child);
}

CHECK(pte_cow_child, PLACE, .rule = "The child's copy is not the target's", .did = "forked in the target, then had the child write to the shared page",
      .expected = "the target's entry keeps its frame", .mistake = "the child's faults update the table", .hint = "Compare the mm", .points = 1)
{
	struct puppet target = watched(2), child = p_fork(&target);

	p_write(&child, WINDOW, 2, 2);
	p_write(&child, WINDOW + 4 * PAGE, 1, 2);
	settle();
	expect(target.pid, WINDOW, 2, ANONYMOUS | MAPPED);
	expect(target.pid, WINDOW + 2 * PAGE, 6, ANONYMOUS);
	end_puppet(&child);
}

CHECK(pte_fork, PLACE, .rule = "fork takes no frame away from the parent", .did = "had the target with 4 written pages fork",
      .expected = "the entries keep flags and frames", .mistake = "the write protection at fork is taken for an unmap", .hint = "Read the entry again: it is not none",
      .points = 1)
{
	struct puppet target = watched(4), child = p_fork(&target);

	settle();
	expect(target.pid, WINDOW, 4, ANONYMOUS | MAPPED);
	end_puppet(&child);
}

CHECK(pte_munmap, PLACE, .rule = "munmap unsets MAPPED and the frame", .did = "had the target unmap 2 of 4 written pages",
      .expected = "0 and pfn 0; the others stay", .mistake = "the VMA's flags go and MAPPED stays", .hint = "zap_pte_range(), or invalidate_range_end",
      .points = 2)
{
	struct puppet target = watched(4);

	p_munmap(&target, WINDOW, 2);
	expect(target.pid, WINDOW, 2, 0);
	expect(target.pid, WINDOW + 2 * PAGE, 2, ANONYMOUS | MAPPED);
}

CHECK(pte_dontneed, PLACE, .rule = "MADV_DONTNEED unmaps the frames and keeps the mapping", .did = "had the target drop 2 of 4 written pages",
      .expected = "ALLOCATED ANONYMOUS, pfn 0", .mistake = "only munmap clears frames", .hint = "The notifier is told of every zap", .points = 2)
{
	struct puppet target = watched(4);

	expect_ret(p_call(&target, SYS_madvise, WINDOW, 2 * PAGE, (long)MADV_DONTNEED, 0L, 0L, 0L), 0, "madvise");
	expect(target.pid, WINDOW, 2, ANONYMOUS);
	expect(target.pid, WINDOW + 2 * PAGE, 2, ANONYMOUS | MAPPED);
}

CHECK(pte_refault, PLACE, .rule = "A page that went away and comes back is MAPPED again", .did = "dropped a page (MADV_DONTNEED), and wrote to it again",
      .expected = "MAPPED, with the new frame", .mistake = "the first fault alone is seen", .hint = "Every fault that sets an entry", .points = 1)
{
	struct puppet target = watched(2);

	p_call(&target, SYS_madvise, WINDOW, 2 * PAGE, (long)MADV_DONTNEED, 0L, 0L, 0L);
	expect(target.pid, WINDOW, 2, ANONYMOUS);
	p_write(&target, WINDOW, 1, 3);
	expect(target.pid, WINDOW, 1, ANONYMOUS | MAPPED);
	expect(target.pid, WINDOW + PAGE, 1, ANONYMOUS);
}

CHECK(pte_pfn_cleared, .place = "Defining the shadow page table", .rule = "An entry without a frame has pfn 0",
      .did = "dropped written pages, and read pfn", .expected = "pfn 0", .mistake = "MAPPED is unset, and pfn stays", .hint = "Clear both", .points = 1)
{
	struct puppet target;

	need_pfns();
	target = watched(4);
	expect_that(now.entries[1].pfn != 0, "the pfn of a written page is 0");
	p_call(&target, SYS_madvise, WINDOW, 4 * PAGE, (long)MADV_DONTNEED, 0L, 0L, 0L);
	expect(target.pid, WINDOW, 8, ANONYMOUS);
}

CHECK(pte_mprotect, PLACE, .rule = "A page that loses its write right keeps its frame", .did = "had the target take the write right from written pages",
      .expected = "MAPPED, with the same pfn", .mistake = "every invalidation is taken for an unmap", .hint = "Walk the page table again in the notifier",
      .points = 1)
{
	struct puppet target = watched(4);

	p_call(&target, SYS_mprotect, WINDOW, 4 * PAGE, (long)PROT_READ, 0L, 0L, 0L);
	settle();
	expect(target.pid, WINDOW, 4, ANONYMOUS | MAPPED);
}

CHECK(pte_mprotect_none, PLACE, .rule = "A page without any right keeps its frame: its entry is not none", .did = "had the target set PROT_NONE for written pages",
      .expected = "MAPPED, with the same pfn", .mistake = "the present bit of the hardware is tested", .hint = "pte_none() is the test of the assignment",
      .points = 1)
{
	struct puppet target = watched(4);

	p_call(&target, SYS_mprotect, WINDOW, 4 * PAGE, (long)PROT_NONE, 0L, 0L, 0L);
	settle();
	expect(target.pid, WINDOW, 4, ANONYMOUS | MAPPED);
}

CHECK(pte_populate, PLACE, .rule = "Frames that come without a fault count as well (MAP_POPULATE)", .did = "had the target map 4 pages with MAP_POPULATE",
      .expected = "4 entries MAPPED", .mistake = "the hook is in the handler of the processor's fault", .hint = "handle_mm_fault() is on both ways", .points = 1)
{
	struct puppet target = new_puppet();

	watch(target.pid, WINDOW, 8);
	p_mmap(&target, WINDOW, 4, RW, ANON | MAP_POPULATE);
	expect(target.pid, WINDOW, 4, ANONYMOUS | MAPPED);
	expect(target.pid, WINDOW + 4 * PAGE, 4, 0);
}

CHECK(pte_by_kernel, PLACE, .rule = "A fault that the kernel makes for the process counts as well", .did = "had the target read(2) into an untouched page",
      .expected = "MAPPED", .mistake = "only faults of user mode are seen", .hint = "do_user_addr_fault() serves both modes", .points = 1)
{
	struct puppet target = watched(0);

	p_read_into(&target, WINDOW + PAGE);
	expect(target.pid, WINDOW + PAGE, 1, ANONYMOUS | MAPPED);
}

CHECK(pte_mlock, PLACE, .rule = "mlock brings the frames in", .did = "had the target mlock 2 untouched pages", .expected = "2 entries MAPPED",
      .mistake = "only faults of user mode are seen", .hint = "populate_vma_page_range() ends in handle_mm_fault()", .points = 1)
{
	struct puppet target = watched(0);
	long ret = p_call(&target, SYS_mlock, WINDOW, 2 * PAGE, 0L, 0L, 0L, 0L);

	if (ret)
		skipped("the target may not mlock: %s", errno_text((int)-ret));
	expect(target.pid, WINDOW, 2, ANONYMOUS | MAPPED);
	expect(target.pid, WINDOW + 2 * PAGE, 6, ANONYMOUS);
}

CHECK(pte_file_read, PLACE, .rule = "Pages of a file that are read are MAPPED", .did = "had the target read 4 mapped pages of a file",
      .expected = "ALLOCATED MAPPED, with the frames of the page cache", .mistake = "faults of files take another way than anonymous ones", .hint = "set_pte_range() sets several entries at once",
      .points = 2)
{
	struct puppet target = new_puppet();

	p_mmap_file(&target, WINDOW, 4, RW, MAP_PRIVATE);
	watch(target.pid, WINDOW, 4);
	p_read(&target, WINDOW, 4);
	expect(target.pid, WINDOW, 4, ALLOCATED | MAPPED);
}

CHECK(pte_file_around, PLACE, .rule = "Pages that a fault maps around its own are MAPPED as well", .did = "had the target read page 2 of a mapped file of 16 pages",
      .expected = "the entries are what pagemap says of each page", .mistake = "fault-around sets sixteen entries, and one is noted", .hint = "filemap_map_pages(): update the whole range",
      .points = 1)
{
	struct puppet target = new_puppet();

	p_mmap_file(&target, WINDOW, 16, PROT_READ, MAP_PRIVATE);
	watch(target.pid, WINDOW, 16);
	p_read(&target, WINDOW + 2 * PAGE, 1);
	expect_truth(target.pid);
}

CHECK(pte_file_cow, PLACE, .rule = "A write to a private page of a file gives it a frame of its own", .did = "had the target read a private page of a file, then write to it",
      .expected = "ALLOCATED MAPPED, with another pfn", .mistake = "copy-on-write of file pages has no hook", .hint = "wp_page_copy(), do_cow_fault()", .points = 1)
{
	struct puppet target = new_puppet();
	ulong_t before;

	need_pfns();
	p_mmap_file(&target, WINDOW, 2, RW, MAP_PRIVATE);
	watch(target.pid, WINDOW, 2);
	p_read(&target, WINDOW, 2);
	expect(target.pid, WINDOW, 2, ALLOCATED | MAPPED);
	before = now.entries[0].pfn;
	p_write(&target, WINDOW, 1, 1);
	expect(target.pid, WINDOW, 2, ALLOCATED | MAPPED);
	expect_that(now.entries[0].pfn != before, "the pfn is still %#lx, the page cache's", before);
}

CHECK(pte_exit, PLACE, .rule = "The target's exit unsets MAPPED and the frames", .did = "had a target with 4 written pages exit",
      .expected = "4 entries 0, pfn 0", .mistake = "the entries keep frames that others will get", .hint = "exit_mmap(), or the notifier's release", .points = 2)
{
	struct puppet target = watched(4);

	p_die(&target, 0);
	expect(target.pid, WINDOW, 8, 0);
}

CHECK(pte_mremap, PLACE, .rule = "mremap takes the frames away from the old place", .did = "had the target move 2 written pages out of the range",
      .expected = "the old entries are not MAPPED, pfn 0", .mistake = "entries that move are not seen", .hint = "move_page_tables() tells the notifier of the old range",
      .points = 1)
{
	struct puppet target = watched(2);

	expect_that(p_call(&target, SYS_mremap, WINDOW, 2 * PAGE, 2 * PAGE, (long)(MREMAP_MAYMOVE | MREMAP_FIXED),
			   WINDOW + 64 * PAGE, 0L) > 0, "mremap fails");
	expect(target.pid, WINDOW, 2, 0);
	expect(target.pid, WINDOW + 2 * PAGE, 6, ANONYMOUS);
}

CHECK(pte_mremap_new, PLACE, .rule = "Beyond the list: the new place has the frames", .did = "had the target move 2 written pages within the range",
      .expected = "the new entries are MAPPED with the frames", .mistake = "moved entries are set without a fault", .hint = "move_ptes()", .is_extra = 1)
{
	struct puppet target = watched(2);

	expect_that(p_call(&target, SYS_mremap, WINDOW, 2 * PAGE, 2 * PAGE, (long)(MREMAP_MAYMOVE | MREMAP_FIXED),
			   WINDOW + 4 * PAGE, 0L) > 0, "mremap fails");
	expect(target.pid, WINDOW + 4 * PAGE, 2, ANONYMOUS | MAPPED);
}

CHECK(pte_many, PLACE, .rule = "Each of many pages has its own state", .did = "had the target write every third of 1,024 pages, and drop every ninth",
      .expected = "the table is what maps and pagemap say", .mistake = "entries of one page table are taken for all, or updates are lost", .hint = "Compare with /proc/PID/pagemap yourself",
      .points = 1)
{
	struct puppet target = new_puppet();

	p_mmap(&target, WINDOW, 1024, RW, ANON);
	p_call(&target, SYS_madvise, WINDOW, 1024 * PAGE, (long)MADV_NOHUGEPAGE, 0L, 0L, 0L);
	watch(target.pid, WINDOW, 1024);
	for (ulong_t at = 0; at < 1024; at += 3)
		p_write(&target, WINDOW + at * PAGE, 1, 1);
	for (ulong_t at = 0; at < 1024; at += 9)
		p_call(&target, SYS_madvise, WINDOW + at * PAGE, PAGE, (long)MADV_DONTNEED, 0L, 0L, 0L);
	expect_truth(target.pid);
}

CHECK(pte_pfns_distinct, PLACE, .rule = "pfn names the frame of that very page", .did = "had the target write 64 pages, and compared all pfns",
      .expected = "64 different numbers, those of pagemap", .mistake = "the pfn of the table page or of the first page is stored", .hint = "pte_pfn(ptep_get(pte))", .points = 2)
{
	struct puppet target = new_puppet();

	need_pfns();
	p_mmap(&target, WINDOW, 64, RW, ANON);
	watch(target.pid, WINDOW, 64);
	p_write(&target, WINDOW, 64, 1);
	expect(target.pid, WINDOW, 64, ANONYMOUS | MAPPED);
	for (int at = 1; at < 64; at++)
		for (int other = 0; other < at; other++)
			expect_that(now.entries[at].pfn != now.entries[other].pfn, "pages %d and %d have one pfn, %#lx", other, at, now.entries[at].pfn);
}

/* 2 MiB of the target that are one huge page, at WINDOW + 2 MiB. */
#define HUGE (WINDOW + 512 * 4096UL)

static struct puppet huge_target(void)
{
	struct puppet target = new_puppet();

	p_mmap(&target, HUGE - 16 * PAGE, 512 + 32, RW, ANON);
	p_call(&target, SYS_madvise, HUGE, 512 * PAGE, (long)MADV_HUGEPAGE, 0L, 0L, 0L);
	return target;
}

static void need_huge(struct puppet *target)
{
	if (!pagemap_is_present(target->pid, HUGE + 400 * PAGE))
		skipped("this kernel gave no huge page here");
}

CHECK(huge_beside, PLACE, .rule = "Small pages are right also where huge pages are", .did = "had the target write a huge page, and small pages before and after it",
      .expected = "the entries of the small pages are right", .mistake = "the walk takes a huge entry for a table, or gives up at it", .hint = "pmd_trans_huge() before pte_offset_map()",
      .points = 2)
{
	struct puppet target = huge_target();

	watch(target.pid, HUGE - 16 * PAGE, 512 + 32);
	p_write(&target, HUGE, 1, 1);
	need_huge(&target);
	p_write(&target, HUGE - 2 * PAGE, 2, 1);
	p_write(&target, HUGE + 512 * PAGE, 2, 1);
	expect(target.pid, HUGE - 16 * PAGE, 14, ANONYMOUS);
	expect(target.pid, HUGE - 2 * PAGE, 2, ANONYMOUS | MAPPED);
	expect(target.pid, HUGE + 512 * PAGE, 2, ANONYMOUS | MAPPED);
	expect(target.pid, HUGE + 514 * PAGE, 14, ANONYMOUS);
}

CHECK(huge_pfns, PLACE, .rule = "Beyond the assignment: each page of a huge page has its own frame", .did = "had the target write a huge page",
      .expected = "512 entries MAPPED, with the frames that follow one another", .mistake = "the frame of the head page is stored for all", .hint = "pmd_pfn() + the page's index in the huge page",
      .is_extra = 1)
{
	struct puppet target = huge_target();

	need_pfns();
	watch(target.pid, HUGE, 512);
	p_write(&target, HUGE, 1, 1);
	need_huge(&target);
	expect(target.pid, HUGE, 512, ANONYMOUS | MAPPED);
}

CHECK(huge_at_start, PLACE, .rule = "Start works in the presence of huge pages", .did = "opened and started over a huge page and small pages beside it",
      .expected = "the entries of the small pages are right", .mistake = "start's walk takes a huge entry for a table: a crash, or wild frames", .hint = "pmd_trans_huge(), pmd_leaf()", .points = 1)
{
	struct puppet target = huge_target();

	p_write(&target, HUGE, 1, 1);
	need_huge(&target);
	p_write(&target, HUGE - 2 * PAGE, 2, 1);
	p_write(&target, HUGE + 512 * PAGE, 2, 1);
	watch(target.pid, HUGE - 16 * PAGE, 512 + 32);
	expect(target.pid, HUGE - 16 * PAGE, 14, ANONYMOUS);
	expect(target.pid, HUGE - 2 * PAGE, 2, ANONYMOUS | MAPPED);
	expect(target.pid, HUGE + 512 * PAGE, 2, ANONYMOUS | MAPPED);
	expect(target.pid, HUGE + 514 * PAGE, 14, ANONYMOUS);
}
