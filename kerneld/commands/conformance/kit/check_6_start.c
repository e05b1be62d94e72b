/* shadowpt_start and shadowpt_stop: when the table changes. */
#define _GNU_SOURCE
#include "kit.h"

#include <sys/syscall.h>

#define PLACE .place = "Beginning and end of tracking", .semesters = HAS_START

CHECK(start_needed, PLACE, .rule = "Between open and start nothing is tracked",
      .did = "opened a mapped page, and had the target write to it before start", .expected = "the entry is not MAPPED",
      .mistake = "open registers the notifier already", .hint = "Register it in start", .points = 1)
{
	struct puppet target = new_puppet();

	p_mmap(&target, WINDOW, 4, RW, ANON);
	open_table(target.pid, WINDOW, 4);
	p_write(&target, WINDOW, 1, 1);
	settle();
	expect_that(!(now.entries[0].state & MAPPED), "the entry is %s before start", state_text(now.entries[0].state));
}

CHECK(start_fills_vmas, .place = "Beginning and end of tracking", .rule = "Start fills the table with the mappings that exist",
      .did = "mapped 3 of 8 pages, then opened and started", .expected = "3 entries ALLOCATED, ANONYMOUS; 5 entries 0",
      .mistake = "start tracks changes only", .hint = "Treat start as an update of the whole range", .points = 2)
{
	struct puppet target = new_puppet();

	p_mmap(&target, WINDOW + 2 * PAGE, 3, RW, ANON);
	watch(target.pid, WINDOW, 8);
	expect(target.pid, WINDOW, 2, 0);
	expect(target.pid, WINDOW + 2 * PAGE, 3, ANONYMOUS);
	expect(target.pid, WINDOW + 5 * PAGE, 3, 0);
}

CHECK(start_fills_ptes, .place = "Beginning and end of tracking", .rule = "Start fills the table with the frames that are mapped",
      .did = "mapped 8 pages and wrote to 3, then opened and started", .expected = "3 entries MAPPED, with their frames",
      .mistake = "start looks at VMAs only", .hint = "Walk the target's page table for every page of the range", .points = 2)
{
	struct puppet target = new_puppet();

	p_mmap(&target, WINDOW, 8, RW, ANON);
	p_write(&target, WINDOW + 3 * PAGE, 3, 1);
	watch(target.pid, WINDOW, 8);
	expect(target.pid, WINDOW, 3, ANONYMOUS);
	expect(target.pid, WINDOW + 3 * PAGE, 3, ANONYMOUS | MAPPED);
	expect(target.pid, WINDOW + 6 * PAGE, 2, ANONYMOUS);
}

CHECK(start_resets_vmas, PLACE, .rule = "Start always resets the table to the mappings of now",
      .did = "tracked a mapping, stopped, had the target unmap it, and started again", .expected = "the entries lose all flags",
      .mistake = "start only adds flags, and clears none", .hint = "Write every entry of the range anew", .points = 2)
{
	struct puppet target = new_puppet();

	p_mmap(&target, WINDOW, 4, RW, ANON);
	watch(target.pid, WINDOW, 8);
	expect(target.pid, WINDOW, 4, ANONYMOUS);
	expect_ret(sp_stop(), 0, "stop");
	p_munmap(&target, WINDOW, 4);
	expect_ret(sp_start(), 0, "start");
	expect(target.pid, WINDOW, 8, 0);
}

CHECK(start_resets_ptes, PLACE, .rule = "Start always resets the table to the frames of now",
      .did = "tracked a written page, stopped, dropped the page (MADV_DONTNEED), and started again",
      .expected = "not MAPPED, pfn 0", .mistake = "frames that went away while stopped stay in the table",
      .hint = "Clear pfn and MAPPED where pte_none()", .points = 2)
{
	struct puppet target = new_puppet();

	p_mmap(&target, WINDOW, 4, RW, ANON);
	p_write(&target, WINDOW, 4, 1);
	watch(target.pid, WINDOW, 4);
	expect(target.pid, WINDOW, 4, ANONYMOUS | MAPPED);
	expect_ret(sp_stop(), 0, "stop");
	expect_ret(p_call(&target, SYS_madvise, WINDOW, 2 * PAGE, (long)MADV_DONTNEED, 0L, 0L, 0L), 0, "madvise");
	expect_ret(sp_start(), 0, "start");
	expect(target.pid, WINDOW, 2, ANONYMOUS);
	expect(target.pid, WINDOW + 2 * PAGE, 2, ANONYMOUS | MAPPED);
}

CHECK(start_twice, PLACE, .rule = "Start while tracking is a reset, no error", .did = "started twice, then had the target write",
      .expected = "0, and one right table", .mistake = "the notifier is registered twice", .hint = "Start stops first if it tracks already",
      .points = 1)
{
	struct puppet target = new_puppet();

	watch(target.pid, WINDOW, 4);
	expect_ret(sp_start(), 0, "the second start");
	p_mmap(&target, WINDOW, 4, RW, ANON);
	p_write(&target, WINDOW, 1, 1);
	expect(target.pid, WINDOW, 1, ANONYMOUS | MAPPED);
	expect(target.pid, WINDOW + PAGE, 3, ANONYMOUS);
}

CHECK(start_again, PLACE, .rule = "After stop and start the table has changes again",
      .did = "started, stopped and started, then had the target map and write", .expected = "the entries follow",
      .mistake = "stop breaks what start needs", .hint = "Stop unregisters, start registers", .points = 1)
{
	struct puppet target = new_puppet();

	watch(target.pid, WINDOW, 4);
	expect_ret(sp_stop(), 0, "stop");
	expect_ret(sp_start(), 0, "start");
	p_mmap(&target, WINDOW, 4, RW, ANON);
	p_write(&target, WINDOW, 2, 1);
	expect(target.pid, WINDOW, 2, ANONYMOUS | MAPPED);
	expect(target.pid, WINDOW + 2 * PAGE, 2, ANONYMOUS);
}

CHECK(stop_freezes_vmas, PLACE, .rule = "After stop no mapping that changes changes the table",
      .did = "started, stopped, and had the target map and unmap", .expected = "the table of the moment of stop",
      .mistake = "the hooks do not ask whether tracking is on", .hint = "Every update function checks it first", .points = 2)
{
	struct puppet target = new_puppet();

	p_mmap(&target, WINDOW, 2, RW, ANON);
	watch(target.pid, WINDOW, 4);
	expect(target.pid, WINDOW, 2, ANONYMOUS);
	expect_ret(sp_stop(), 0, "stop");
	p_mmap(&target, WINDOW + 2 * PAGE, 2, RW, ANON);
	p_munmap(&target, WINDOW, 1);
	settle();
	expect(target.pid, WINDOW, 2, ANONYMOUS);
	expect(target.pid, WINDOW + 2 * PAGE, 2, 0);
}

CHECK(stop_freezes_ptes, PLACE, .rule = "After stop no frame that comes or goes changes the table",
      .did = "started, stopped, and had the target write to one page", .expected = "the entry is not MAPPED",
      .mistake = "faults update the table also after stop", .hint = "Every update function checks whether tracking is on",
      .points = 2)
{
	struct puppet target = new_puppet();

	p_mmap(&target, WINDOW, 2, RW, ANON);
	watch(target.pid, WINDOW, 2);
	expect(target.pid, WINDOW, 2, ANONYMOUS);
	expect_ret(sp_stop(), 0, "stop");
	p_write(&target, WINDOW, 1, 1);
	settle();
	expect(target.pid, WINDOW, 2, ANONYMOUS);
}

CHECK(stop_keeps_table, PLACE, .rule = "Stop ends the updates, and keeps the table",
      .did = "tracked written pages, and stopped", .expected = "the entries keep flags and frames",
      .mistake = "stop empties or frees the table", .hint = "Only close does that", .points = 1)
{
	struct puppet target = new_puppet();

	p_mmap(&target, WINDOW, 4, RW, ANON);
	p_write(&target, WINDOW, 2, 1);
	watch(target.pid, WINDOW, 4);
	expect(target.pid, WINDOW, 2, ANONYMOUS | MAPPED);
	expect_ret(sp_stop(), 0, "stop");
	settle();
	expect(target.pid, WINDOW, 2, ANONYMOUS | MAPPED);
	expect(target.pid, WINDOW + 2 * PAGE, 2, ANONYMOUS);
}

CHECK(start_without_open, PLACE, .rule = "Only the process that opened may start", .did = "started without a table",
      .expected = "an error", .mistake = "start uses a table that does not exist", .hint = "Check the owner first", .points = 1)
{
	expect_failure(sp_start(), "start without open");
}

CHECK(stop_without_open, PLACE, .rule = "Only the process that opened may stop", .did = "stopped without a table",
      .expected = "an error", .mistake = "stop unregisters a notifier that does not exist", .hint = "Check the owner first",
      .points = 1)
{
	expect_failure(sp_stop(), "stop without open");
}

CHECK(start_by_other, PLACE, .rule = "Another process cannot start", .did = "opened; another process started; the target wrote",
      .expected = "an error, and a table that does not track", .mistake = "start does not look at its caller",
      .hint = "The same check as in close", .points = 1)
{
	struct puppet target = new_puppet(), other = new_puppet();

	open_table(target.pid, WINDOW, 4);
	expect_failure(p_call(&other, abi->start, 0L, 0L, 0L, 0L, 0L, 0L), "start by another process");
}

CHECK(stop_by_other, PLACE, .rule = "Another process cannot stop", .did = "started; another process stopped; the target wrote",
      .expected = "an error, and a table that tracks", .mistake = "stop does not look at its caller",
      .hint = "The same check as in close", .points = 1)
{
	struct puppet target = new_puppet(), other = new_puppet();

	watch(target.pid, WINDOW, 4);
	expect_failure(p_call(&other, abi->stop, 0L, 0L, 0L, 0L, 0L, 0L), "stop by another process");
	p_mmap(&target, WINDOW, 4, RW, ANON);
	expect(target.pid, WINDOW, 4, ANONYMOUS);
}

CHECK(start_by_child, PLACE, .rule = "A child of the opener is not the opener: it cannot start or stop",
      .did = "opened, forked, and started and stopped in the child", .expected = "an error for both",
      .mistake = "something that fork copies is compared", .hint = "Compare the process", .points = 1)
{
	struct puppet target = new_puppet(), child;

	open_table(target.pid, WINDOW, 4);
	child = new_puppet();
	expect_failure(p_call(&child, abi->start, 0L, 0L, 0L, 0L, 0L, 0L), "start by a child");
	expect_failure(p_call(&child, abi->stop, 0L, 0L, 0L, 0L, 0L, 0L), "stop by a child");
}

CHECK(start_after_target, PLACE, .rule = "The end of the target does not end the table: the opener closes it",
      .did = "opened; the target ended; then start, stop and close", .expected = "no crash, and 0 from close",
      .mistake = "the task or mm of the target is used after its end", .hint = "get_task_struct(), mmgrab(); mmget_not_zero() before use",
      .points = 1)
{
	struct puppet target = new_puppet();

	p_mmap(&target, WINDOW, 4, RW, ANON);
	open_table(target.pid, WINDOW, 4);
	end_puppet(&target);
	sp_start();
	sp_stop();
	expect_ret(sp_close(), 0, "close after the target's end");
}
