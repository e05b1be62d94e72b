/* Mappings come, change and go: ALLOCATED and ANONYMOUS. */
#define _GNU_SOURCE
#include "kit.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#define PLACE .place = "When VMAs are updated"

CHECK(vma_mmap, PLACE, .rule = "mmap sets ALLOCATED and ANONYMOUS at once", .did = "had the target map 4 of 8 pages",
      .expected = "4 entries ALLOCATED ANONYMOUS, the others 0", .mistake = "there is no hook in mmap",
      .hint = "mmap_region() is where the VMA is inserted", .points = 3)
{
	struct puppet target = new_puppet();

	watch(target.pid, WINDOW, 8);
	p_mmap(&target, WINDOW + 2 * PAGE, 4, RW, ANON);
	expect(target.pid, WINDOW, 2, 0);
	expect(target.pid, WINDOW + 2 * PAGE, 4, ANONYMOUS);
	expect(target.pid, WINDOW + 6 * PAGE, 2, 0);
}

CHECK(vma_mmap_merged, PLACE, .rule = "A mapping that is merged with its neighbour counts as well",
      .did = "had the target map 2 pages, and then 2 directly after them", .expected = "4 entries ALLOCATED ANONYMOUS",
      .mistake = "the hook is only where a new VMA is made, not where one grows", .hint = "vma_merge() and vma_expand() also allocate addresses",
      .points = 1)
{
	struct puppet target = new_puppet();

	p_mmap(&target, WINDOW, 2, RW, ANON);
	watch(target.pid, WINDOW, 8);
	p_mmap(&target, WINDOW + 2 * PAGE, 2, RW, ANON);
	expect(target.pid, WINDOW, 4, ANONYMOUS);
	expect(target.pid, WINDOW + 4 * PAGE, 4, 0);
}

CHECK(vma_first_page, PLACE, .rule = "The first page of the range is in the range", .did = "had the target map the page at start_vaddr",
      .expected = "entry 0 ALLOCATED ANONYMOUS", .mistake = "off by one at the begin", .hint = "index = (vaddr - start) / PAGE_SIZE",
      .points = 1)
{
	struct puppet target = new_puppet();

	watch(target.pid, WINDOW, 8);
	p_mmap(&target, WINDOW, 1, RW, ANON);
	expect(target.pid, WINDOW, 1, ANONYMOUS);
	expect(target.pid, WINDOW + PAGE, 7, 0);
}

CHECK(vma_last_page, PLACE, .rule = "The last page before end_vaddr is in the range",
      .did = "had the target map the last page of the range, and the page after it",
      .expected = "the last entry ALLOCATED ANONYMOUS", .mistake = "off by one at the end", .hint = "end_vaddr is the address after the range",
      .points = 1)
{
	struct puppet target = new_puppet();

	watch(target.pid, WINDOW, 8);
	p_mmap(&target, WINDOW + 7 * PAGE, 2, RW, ANON);
	expect(target.pid, WINDOW, 7, 0);
	expect(target.pid, WINDOW + 7 * PAGE, 1, ANONYMOUS);
}

CHECK(vma_across, PLACE, .rule = "Of a mapping across the bounds the part inside counts",
      .did = "had the target map from 4 pages before the range to 4 pages after it", .expected = "all entries ALLOCATED ANONYMOUS",
      .mistake = "a VMA that begins before the range is ignored, or the index is negative",
      .hint = "Cut the VMA to the range: max of the starts, min of the ends", .points = 1)
{
	struct puppet target = new_puppet();

	watch(target.pid, WINDOW, 8);
	p_mmap(&target, WINDOW - 4 * PAGE, 16, RW, ANON);
	expect(target.pid, WINDOW, 8, ANONYMOUS);
}

CHECK(vma_outside, PLACE, .rule = "Pages outside the range change no entry",
      .did = "had the target map and write the page before the range and the page after it", .expected = "all entries 0",
      .mistake = "the index is not checked: entries of other pages, or other memory, are written", .hint = "Cut every update to the range",
      .points = 1)
{
	struct puppet target = new_puppet();

	watch(target.pid, WINDOW, 8);
	p_mmap(&target, WINDOW - PAGE, 1, RW, ANON);
	p_mmap(&target, WINDOW + 8 * PAGE, 1, RW, ANON);
	p_write(&target, WINDOW - PAGE, 1, 1);
	p_write(&target, WINDOW + 8 * PAGE, 1, 1);
	settle();
	expect(target.pid, WINDOW, 8, 0);
}

CHECK(vma_other_process, PLACE, .rule = "Only the target's mappings count", .did = "had another process map and write the same addresses",
      .expected = "all entries 0", .mistake = "the hook does not compare the mm", .hint = "if (mm != the target's mm) return",
      .points = 1)
{
	struct puppet target = new_puppet(), other = new_puppet();

	watch(target.pid, WINDOW, 8);
	p_mmap(&other, WINDOW, 8, RW, ANON);
	p_write(&other, WINDOW, 8, 1);
	settle();
	expect(target.pid, WINDOW, 8, 0);
}

CHECK(vma_prot_none, PLACE, .rule = "A mapping without rights is allocated too", .did = "had the target map 2 pages PROT_NONE",
      .expected = "ALLOCATED ANONYMOUS", .mistake = "rights are taken for existence", .hint = "A VMA is all that counts", .points = 1)
{
	struct puppet target = new_puppet();

	watch(target.pid, WINDOW, 4);
	p_mmap(&target, WINDOW, 2, PROT_NONE, ANON);
	expect(target.pid, WINDOW, 2, ANONYMOUS);
}

CHECK(vma_munmap, PLACE, .rule = "munmap clears the flags", .did = "had the target unmap 4 untouched pages",
      .expected = "4 entries 0", .mistake = "there is no hook in munmap", .hint = "do_vmi_align_munmap() removes the VMAs", .points = 3)
{
	struct puppet target = new_puppet();

	p_mmap(&target, WINDOW, 4, RW, ANON);
	watch(target.pid, WINDOW, 4);
	expect(target.pid, WINDOW, 4, ANONYMOUS);
	p_munmap(&target, WINDOW, 4);
	expect(target.pid, WINDOW, 4, 0);
}

CHECK(vma_munmap_middle, PLACE, .rule = "munmap of a part clears that part alone",
      .did = "had the target unmap pages 2 and 3 of 6", .expected = "entries 2 and 3 are 0, the others stay",
      .mistake = "the bounds of the whole VMA are used, or a split is not seen", .hint = "Update the range of the call after the VMAs have changed",
      .points = 2)
{
	struct puppet target = new_puppet();

	p_mmap(&target, WINDOW, 6, RW, ANON);
	watch(target.pid, WINDOW, 6);
	p_munmap(&target, WINDOW + 2 * PAGE, 2);
	expect(target.pid, WINDOW, 2, ANONYMOUS);
	expect(target.pid, WINDOW + 2 * PAGE, 2, 0);
	expect(target.pid, WINDOW + 4 * PAGE, 2, ANONYMOUS);
}

CHECK(vma_munmap_ends, PLACE, .rule = "munmap of the first or the last pages of a mapping clears those alone",
      .did = "had the target unmap the first page of 6, and the last", .expected = "entries 0 and 5 are 0, 1 to 4 stay",
      .mistake = "a VMA that shrinks is not seen", .hint = "Split, then remove: both go through the same function", .points = 1)
{
	struct puppet target = new_puppet();

	p_mmap(&target, WINDOW, 6, RW, ANON);
	watch(target.pid, WINDOW, 6);
	p_munmap(&target, WINDOW, 1);
	p_munmap(&target, WINDOW + 5 * PAGE, 1);
	expect(target.pid, WINDOW, 1, 0);
	expect(target.pid, WINDOW + PAGE, 4, ANONYMOUS);
	expect(target.pid, WINDOW + 5 * PAGE, 1, 0);
}

CHECK(vma_munmap_many, PLACE, .rule = "One munmap may remove several mappings",
      .did = "had the target unmap 8 pages with two mappings and a hole", .expected = "8 entries 0",
      .mistake = "only the first VMA is looked at", .hint = "Go through all VMAs of the range", .points = 1)
{
	struct puppet target = new_puppet();

	p_mmap(&target, WINDOW, 3, RW, ANON);
	p_mmap(&target, WINDOW + 5 * PAGE, 3, PROT_READ, ANON);
	watch(target.pid, WINDOW, 8);
	expect(target.pid, WINDOW + 5 * PAGE, 3, ANONYMOUS);
	p_munmap(&target, WINDOW, 8);
	expect(target.pid, WINDOW, 8, 0);
}

CHECK(vma_file, PLACE, .rule = "A mapping of a file is ALLOCATED and not ANONYMOUS", .did = "had the target map 4 pages of a file",
      .expected = "4 entries ALLOCATED", .mistake = "every mapping is called anonymous", .hint = "vma_is_anonymous(vma)", .points = 2)
{
	struct puppet target = new_puppet();

	watch(target.pid, WINDOW, 8);
	p_mmap_file(&target, WINDOW, 4, PROT_READ, MAP_PRIVATE);
	expect(target.pid, WINDOW, 4, ALLOCATED);
	expect(target.pid, WINDOW + 4 * PAGE, 4, 0);
}

CHECK(vma_file_over_anonymous, PLACE, .rule = "A file in the place of anonymous memory unsets ANONYMOUS",
      .did = "had the target map a file over 2 of 4 anonymous pages (MAP_FIXED)", .expected = "those 2 entries are ALLOCATED alone",
      .mistake = "flags are only added", .hint = "Compute the flags of each page anew", .points = 1)
{
	struct puppet target = new_puppet();

	p_mmap(&target, WINDOW, 4, RW, ANON);
	watch(target.pid, WINDOW, 4);
	expect(target.pid, WINDOW, 4, ANONYMOUS);
	p_mmap_file(&target, WINDOW + PAGE, 2, PROT_READ, MAP_PRIVATE);
	expect(target.pid, WINDOW, 1, ANONYMOUS);
	expect(target.pid, WINDOW + PAGE, 2, ALLOCATED);
	expect(target.pid, WINDOW + 3 * PAGE, 1, ANONYMOUS);
}

/* The end of the heap, rounded up: puppets use brk(2) directly. */
static ulong_t heap_end(struct puppet *target)
{
	ulong_t end = (ulong_t)p_call(target, SYS_brk, 0L, 0L, 0L, 0L, 0L, 0L);

	return (end + PAGE - 1) & ~(PAGE - 1);
}

CHECK(vma_brk, PLACE, .rule = "The heap that grows (brk) is allocated memory", .did = "had the target grow its heap by 4 pages",
      .expected = "4 entries ALLOCATED ANONYMOUS", .mistake = "brk has no hook: it does not go through mmap_region()",
      .hint = "do_brk_flags()", .points = 2)
{
	struct puppet target = new_puppet();
	ulong_t end = heap_end(&target);

	watch(target.pid, end, 8);
	p_call(&target, SYS_brk, end + 4 * PAGE, 0L, 0L, 0L, 0L, 0L);
	expect(target.pid, end, 4, ANONYMOUS);
	expect(target.pid, end + 4 * PAGE, 4, 0);
}

CHECK(vma_brk_shrink, PLACE, .rule = "The heap that shrinks is deallocated", .did = "had the target grow its heap by 4 pages and shrink it by 2",
      .expected = "2 entries ALLOCATED ANONYMOUS, 2 entries 0", .mistake = "only munmap(2) is hooked, not what brk calls",
      .hint = "Hook the function that both use", .points = 1)
{
	struct puppet target = new_puppet();
	ulong_t end = heap_end(&target);

	p_call(&target, SYS_brk, end + 4 * PAGE, 0L, 0L, 0L, 0L, 0L);
	watch(target.pid, end, 8);
	expect(target.pid, end, 4, ANONYMOUS);
	p_call(&target, SYS_brk, end + 2 * PAGE, 0L, 0L, 0L, 0L, 0L);
	expect(target.pid, end, 2, ANONYMOUS);
	expect(target.pid, end + 2 * PAGE, 6, 0);
}

CHECK(vma_malloc_free, PLACE, .rule = "malloc allocates and free deallocates, where they reach the kernel",
      .did = "had the target malloc 1 MiB, watched it, and had it freed", .expected = "ALLOCATED ANONYMOUS, then 0",
      .mistake = "only direct calls of mmap(2) and munmap(2) are hooked", .hint = "malloc of 128 KiB or more is mmap", .points = 1)
{
	struct puppet target = new_puppet();
	ulong_t at = p_malloc(&target, 1UL << 20), first = (at + PAGE - 1) & ~(PAGE - 1);

	if (!at)
		skipped("no memory");
	watch(target.pid, first, 8);
	expect(target.pid, first + PAGE, 4, ANONYMOUS);
	p_free(&target, at);
	expect(target.pid, first, 8, 0);
}

CHECK(vma_exit, PLACE, .rule = "The target's exit clears every entry", .did = "watched 4 untouched pages of a target that exited",
      .expected = "4 entries 0", .mistake = "exit_mmap() is not hooked: no munmap is called", .hint = "exit_mmap(), or the notifier's release",
      .points = 2)
{
	struct puppet target = new_puppet();

	p_mmap(&target, WINDOW, 4, RW, ANON);
	watch(target.pid, WINDOW, 8);
	expect(target.pid, WINDOW, 4, ANONYMOUS);
	p_die(&target, 0);
	expect(target.pid, WINDOW, 8, 0);
}

CHECK(vma_killed, PLACE, .rule = "A target that is killed is a target that exits", .did = "killed the target (SIGKILL) while 4 pages were watched",
      .expected = "4 entries 0", .mistake = "only the exit call is hooked", .hint = "Every end goes through exit_mm()", .points = 1)
{
	struct puppet target = new_puppet();

	p_mmap(&target, WINDOW, 4, RW, ANON);
	watch(target.pid, WINDOW, 8);
	expect(target.pid, WINDOW, 4, ANONYMOUS);
	end_puppet(&target);
	expect(target.pid, WINDOW, 8, 0);
}

CHECK(vma_execve, PLACE, .rule = "execve takes the old mappings away", .did = "had the target with 4 mapped pages execute another program",
      .expected = "4 entries 0", .mistake = "the old mm goes without munmap", .hint = "exec_mmap(): the process gets a new mm", .points = 2)
{
	struct puppet target = new_puppet();

	p_mmap(&target, WINDOW, 4, RW, ANON);
	p_write(&target, WINDOW, 2, 1);
	watch(target.pid, WINDOW, 8);
	expect(target.pid, WINDOW, 2, ANONYMOUS | MAPPED);
	p_exec(&target);
	expect(target.pid, WINDOW, 8, 0);
}

CHECK(vma_growsdown, PLACE, .rule = "A mapping with VM_GROWSDOWN grows by a fault below it",
      .did = "had the target map a page MAP_GROWSDOWN, and write 3 pages below it", .expected = "the pages down to there are ALLOCATED ANONYMOUS, that page MAPPED",
      .mistake = "stack growth has no hook", .hint = "expand_downwards()", .points = 2)
{
	struct puppet target = new_puppet();
	ulong_t top = WINDOW + 512 * PAGE;

	p_mmap(&target, top, 1, RW, ANON | MAP_GROWSDOWN);
	watch(target.pid, top - 7 * PAGE, 8);
	p_write(&target, top - 3 * PAGE, 1, 1);
	expect(target.pid, top - 7 * PAGE, 4, 0);
	expect(target.pid, top - 3 * PAGE, 1, ANONYMOUS | MAPPED);
	expect(target.pid, top - 2 * PAGE, 3, ANONYMOUS);
}

CHECK(vma_stack, PLACE, .rule = "The stack grows the same way", .did = "had the target recurse 512 KiB deep, and watched below its stack",
      .expected = "the pages below the old end become ALLOCATED ANONYMOUS MAPPED", .mistake = "stack growth has no hook", .hint = "expand_stack_locked()",
      .points = 1)
{
	struct puppet target = new_puppet();
	ulong_t start, end;

	range_of(target.pid, "[stack]", &start, &end);
	watch(target.pid, start - 32 * PAGE, 32);
	expect(target.pid, start - 32 * PAGE, 32, 0);
	p_grow_stack(&target, 512 * 1024);
	expect(target.pid, start - 16 * PAGE, 16, ANONYMOUS | MAPPED);
}

CHECK(vma_fork_child, PLACE, .rule = "What a child of the target maps and unmaps does not count", .did = "forked in the target; the child unmapped 2 of 4 pages and mapped 2 others",
      .expected = "the target's entries stay", .mistake = "the hook takes the child's mm for the target's", .hint = "Compare the mm", .points = 1)
{
	struct puppet target = new_puppet(), child;

	p_mmap(&target, WINDOW, 4, RW, ANON);
	watch(target.pid, WINDOW, 8);
	child = p_fork(&target);
	p_munmap(&child, WINDOW, 2);
	p_mmap(&child, WINDOW + 4 * PAGE, 2, RW, ANON);
	settle();
	expect(target.pid, WINDOW, 4, ANONYMOUS);
	expect(target.pid, WINDOW + 4 * PAGE, 4, 0);
	end_puppet(&child);
}

CHECK(vma_mprotect, PLACE, .rule = "mprotect changes rights, not the allocation", .did = "had the target take the write right from 2 of 4 pages",
      .expected = "4 entries ALLOCATED ANONYMOUS", .mistake = "a split VMA is taken for a removed one", .hint = "Compute the flags from the VMAs after the change",
      .points = 1)
{
	struct puppet target = new_puppet();

	p_mmap(&target, WINDOW, 4, RW, ANON);
	watch(target.pid, WINDOW, 4);
	p_call(&target, SYS_mprotect, WINDOW + PAGE, 2 * PAGE, (long)PROT_READ, 0L, 0L, 0L);
	settle();
	expect(target.pid, WINDOW, 4, ANONYMOUS);
}

CHECK(vma_mremap, PLACE, .rule = "Beyond the list: mremap moves a mapping", .did = "had the target move 2 pages within the range",
      .expected = "the old place is 0, the new place ALLOCATED ANONYMOUS", .mistake = "only mmap and munmap are hooked", .hint = "copy_vma(), do_vmi_munmap()",
      .is_extra = 1)
{
	struct puppet target = new_puppet();

	p_mmap(&target, WINDOW, 2, RW, ANON);
	watch(target.pid, WINDOW, 8);
	expect_that(p_call(&target, SYS_mremap, WINDOW, 2 * PAGE, 2 * PAGE, (long)(MREMAP_MAYMOVE | MREMAP_FIXED),
			   WINDOW + 4 * PAGE, 0L) > 0, "mremap fails");
	expect(target.pid, WINDOW, 4, 0);
	expect(target.pid, WINDOW + 4 * PAGE, 2, ANONYMOUS);
	expect(target.pid, WINDOW + 6 * PAGE, 2, 0);
}
