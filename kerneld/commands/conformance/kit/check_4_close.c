/* shadowpt_close: what is left after it, and who may call it. */
#define _GNU_SOURCE
#include "kit.h"

#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PLACE .place = "Destroying the shadow page table"

CHECK(close_works, PLACE, .rule = "Close resets what open has set up", .did = "opened, closed, and opened again",
      .expected = "0 each time", .mistake = "the global owner is not reset", .hint = "Reset every global of open", .points = 2)
{
	struct puppet target = new_puppet();

	open_table(target.pid, WINDOW, 4);
	expect_ret(sp_close(), 0, "close");
	open_table(target.pid, WINDOW, 4);
}

CHECK(close_while_tracking, .place = "Beginning and end of tracking", .rule = "Close while tracking is no error",
      .did = "opened, started, closed without stop, and opened again", .expected = "0 each time",
      .mistake = "close returns an error, or the notifier stays registered", .hint = "Close does what stop does, first",
      .points = 1)
{
	struct puppet target = new_puppet();

	watch(target.pid, WINDOW, 4);
	expect_ret(sp_close(), 0, "close while tracking");
	watch(target.pid, WINDOW, 4);
}

CHECK(close_without_open, PLACE, .rule = "Only the process that opened may close", .did = "closed without a table",
      .expected = "an error", .mistake = "close frees what does not exist", .hint = "Check the owner first", .points = 1)
{
	expect_failure(sp_close(), "close without open");
}

CHECK(close_twice, PLACE, .rule = "After close there is nothing to close", .did = "opened, closed and closed again",
      .expected = "an error from the second close", .mistake = "the owner stays set: pages are freed twice",
      .hint = "Clear the owner in close", .points = 1)
{
	struct puppet target = new_puppet();

	open_table(target.pid, WINDOW, 4);
	expect_ret(sp_close(), 0, "close");
	expect_failure(sp_close(), "the second close");
}

CHECK(close_by_other, PLACE, .rule = "Another process cannot close the table",
      .did = "opened and started; another process closed; then the target wrote to a page",
      .expected = "an error for the other, and a table that still works", .mistake = "any process may close",
      .hint = "Compare with the task that opened", .points = 2)
{
	struct puppet target = new_puppet(), other = new_puppet();

	watch(target.pid, WINDOW, 4);
	expect_failure(p_call(&other, abi->close, 0L, 0L, 0L, 0L, 0L, 0L), "close by another process");
	p_mmap(&target, WINDOW, 2, RW, ANON);
	p_write(&target, WINDOW, 1, 1);
	expect(target.pid, WINDOW, 1, ANONYMOUS | MAPPED);
}

CHECK(close_by_child, PLACE, .rule = "A child of the opener is not the opener",
      .did = "opened, forked, and closed in the child", .expected = "an error for the child, 0 for the opener after it",
      .mistake = "the mm, a pointer or the uid is compared instead of the process", .hint = "Compare current->tgid, or the task",
      .points = 2)
{
	struct puppet target = new_puppet(), child;

	open_table(target.pid, WINDOW, 4);
	child = new_puppet();
	expect_failure(p_call(&child, abi->close, 0L, 0L, 0L, 0L, 0L, 0L), "close by a child of the opener");
	end_puppet(&child);
	expect_ret(sp_close(), 0, "close by the opener");
}

CHECK(close_frees_for_others, PLACE, .rule = "After close another process may open",
      .did = "opened and closed here, then opened in another process", .expected = "0 for the other",
      .mistake = "the owner's pid stays, and only the owner may open again", .hint = "Reset the global state", .points = 1)
{
	struct puppet target = new_puppet(), other = new_puppet();

	open_table(target.pid, WINDOW, 4);
	expect_ret(sp_close(), 0, "close");
	expect_ret(p_open(&other, target.pid, WINDOW, 4, 0), 0, "open by another process");
	expect_ret(p_call(&other, abi->close, 0L, 0L, 0L, 0L, 0L, 0L), 0, "close by that process");
}

CHECK(close_empties, PLACE, .rule = "After close the memory is as after mmap: it reads as zeros",
      .did = "opened and started over mapped pages, closed, and read entries",
      .expected = "zeros in every byte", .mistake = "the kernel's pages stay mapped after close",
      .hint = "zap_vma_ptes() for the range of entries", .points = 2)
{
	struct puppet target = new_puppet();
	volatile struct spte *entries;

	p_mmap(&target, WINDOW, 4, RW, ANON);
	watch(target.pid, WINDOW, 4);
	expect(target.pid, WINDOW, 4, ANONYMOUS);
	entries = now.entries;
	expect_ret(sp_close(), 0, "close");
	for (int at = 0; at < 4; at++)
		expect_that(!entries[at].vaddr && !entries[at].state, "entry %d still is %#lx, %s", at, entries[at].vaddr,
			    state_text(entries[at].state));
}

CHECK(close_writable, PLACE, .rule = "After close the memory is as after mmap: it can be written",
      .did = "opened, closed, and wrote to every byte of entries", .expected = "the bytes are there",
      .mistake = "the VMA keeps VM_PFNMAP or lost VM_WRITE: SIGSEGV or SIGBUS", .hint = "Put the VMA's old flags back",
      .points = 2)
{
	struct puppet target = new_puppet();
	char *entries;

	open_table(target.pid, WINDOW, 4);
	entries = (char *)(ulong_t)now.entries;
	expect_ret(sp_close(), 0, "close");
	memset(entries, 'w', PAGE);
	expect_that(entries[0] == 'w' && entries[PAGE - 1] == 'w', "what was written is not there");
}

CHECK(close_no_pages, PLACE, .rule = "After close no kernel page stays in the inspector's page table",
      .did = "opened, started, read the entries, closed, and read pagemap of the page", .expected = "no physical page there",
      .mistake = "close frees the pages and leaves the entries: the inspector reads freed memory",
      .hint = "Unmap first, free after it", .points = 2)
{
	struct puppet target = new_puppet();
	ulong_t at;

	watch(target.pid, WINDOW, 4);
	at = (ulong_t)now.entries;
	(void)now.entries[0].state;
	expect_ret(sp_close(), 0, "close");
	expect_that(!pagemap_is_present(getpid(), at), "pagemap of the entries still shows a page");
}

CHECK(close_reopen_same, PLACE, .rule = "After close the same memory can be used for the next open",
      .did = "opened, started, closed, and opened again with the same entries", .expected = "0, and a table that works",
      .mistake = "pages or flags are left, so that the next open refuses the memory", .hint = "As if open had never been called",
      .points = 1)
{
	struct puppet target = new_puppet();

	watch(target.pid, WINDOW, 4);
	expect_ret(sp_close(), 0, "close");
	expect_ret(sp_open(target.pid, &now), 0, "open with the same entries");
	expect_ret(sp_start(), 0, "start");
	p_mmap(&target, WINDOW, 2, RW, ANON);
	expect(target.pid, WINDOW, 2, ANONYMOUS);
	expect_ret(sp_close(), 0, "close");
}

CHECK(close_ends_updates, PLACE, .rule = "After close the kernel writes nothing more into that memory",
      .did = "opened, started, closed, wrote bytes to entries, and had the target map and write",
      .expected = "the bytes stay", .mistake = "the notifier stays registered with the target", .hint = "Unregister it in close",
      .points = 1)
{
	struct puppet target = new_puppet();
	char *entries;

	watch(target.pid, WINDOW, 4);
	entries = (char *)(ulong_t)now.entries;
	expect_ret(sp_close(), 0, "close");
	memset(entries, 'w', PAGE);
	p_mmap(&target, WINDOW, 4, RW, ANON);
	p_write(&target, WINDOW, 4, 1);
	settle();
	for (ulong_t at = 0; at < PAGE; at++)
		expect_that(entries[at] == 'w', "byte %lu of the memory changed after close", at);
}
