/* shadowpt_open: which callers, targets and ranges it takes. */
#define _GNU_SOURCE
#include "kit.h"

#include <limits.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PLACE .place = "Creating the shadow page table: Input Checking"
#define OTHER_USER 65534L

static long open_range(pid_t target, ulong_t start, ulong_t end)
{
	now = (struct table){ start, end, fresh(MAX_PAGES * sizeof(struct spte) / PAGE + 1) };
	return sp_open(target, &now);
}

CHECK(open_works, .place = "Creating the shadow page table", .rule = "Open makes a table of the target's range",
      .did = "opened a table of 8 pages of a child, with fresh entries", .expected = "open returns 0",
      .mistake = "the system call is not in the table of this architecture, or refuses a right call",
      .hint = "Look at dmesg, and print each check of your input in turn", .points = 3)
{
	struct puppet target = new_puppet();

	open_table(target.pid, WINDOW, 8);
}

CHECK(open_keeps_struct, .place = "Creating the shadow page table",
      .rule = "A range that fits is opened as it is given", .did = "opened 8 pages, and read the struct again",
      .expected = "start, end and entries are unchanged", .mistake = "copy_to_user of a struct that was not filled",
      .hint = "Copy the struct in, change only what is truncated, copy it back", .points = 1)
{
	struct puppet target = new_puppet();
	volatile struct spte *entries;

	open_table(target.pid, WINDOW, 8);
	entries = now.entries;
	expect_that(now.start == WINDOW && now.end == WINDOW + 8 * PAGE, "the range is now %#lx to %#lx", now.start, now.end);
	expect_that(entries == now.entries && entries, "entries are now %p", (void *)(ulong_t)now.entries);
}

CHECK(open_self, .place = "Creating the shadow page table", .rule = "The target is any process, the inspector itself too",
      .did = "opened and started a table of this process itself, then wrote to a page",
      .expected = "the page becomes ALLOCATED, ANONYMOUS, MAPPED",
      .mistake = "mmap_lock of one address space is taken twice", .hint = "lockdep (PROVE_LOCKING) names the place",
      .points = 1)
{
	volatile char *at = fresh(4);

	watch(getpid(), (ulong_t)at, 4);
	at[PAGE] = 1;
	expect(getpid(), (ulong_t)at + PAGE, 1, ANONYMOUS | MAPPED);
}

CHECK(open_eperm, PLACE, .rule = "A caller without superuser rights gets EPERM",
      .did = "opened a table as another user than root, with arguments that are right", .expected = "-EPERM",
      .mistake = "the check of the caller's rights is missing", .hint = "capable(CAP_SYS_ADMIN), or the effective uid",
      .points = 2)
{
	struct puppet target = new_puppet(), other = new_puppet();

	if (geteuid())
		skipped("only root can become another user");
	if (p_call(&other, SYS_setuid, OTHER_USER, 0L, 0L, 0L, 0L, 0L))
		skipped("there is no user 65534 here: this is a user namespace");
	expect_ret(p_open(&other, target.pid, WINDOW, 4, 0), -EPERM, "open by uid 65534");
}

CHECK(open_ebusy_other, PLACE, .rule = "There is one table at a time: who comes second gets EBUSY",
      .did = "opened a table, then another process opened one", .expected = "-EBUSY for the second",
      .mistake = "there is no global owner, or it is not looked at", .hint = "One global, with a lock around its check and change",
      .points = 2)
{
	struct puppet target = new_puppet(), other = new_puppet();

	open_table(target.pid, WINDOW, 4);
	expect_ret(p_open(&other, target.pid, WINDOW, 4, 0), -EBUSY, "open by a second process");
}

CHECK(open_ebusy_self, PLACE, .rule = "One table at a time also for the process that has it",
      .did = "opened a table twice from one process", .expected = "-EBUSY for the second",
      .mistake = "only other processes are refused", .hint = "It does not matter who has the table", .points = 1)
{
	struct puppet target = new_puppet();
	struct table second = { WINDOW, WINDOW + 4 * PAGE, fresh(1) };

	open_table(target.pid, WINDOW, 4);
	expect_that(sp_open(target.pid, &second) == -EBUSY, "the second open does not give -EBUSY");
}

CHECK(open_no_process, PLACE, .rule = "A target that does not exist gives EINVAL",
      .did = "opened a table of a child that had ended and was waited for", .expected = "-EINVAL",
      .mistake = "ESRCH is returned, or find_task_by_vpid()'s NULL is used", .hint = "Check it before anything else of the task",
      .points = 2)
{
	struct puppet target = new_puppet();

	end_puppet(&target);
	expect_ret(try_open(target.pid, WINDOW, 4), -EINVAL, "open of a process that is gone");
}

CHECK(open_bad_pids, PLACE, .rule = "A number that is no process gives EINVAL",
      .did = "opened tables of the pids 0, -1 and 2^31 - 1", .expected = "-EINVAL for each",
      .mistake = "pid 0 is taken for the caller, as in other calls", .hint = "find_vpid(0) finds no process of a user",
      .points = 1)
{
	static const pid_t pids[] = { 0, -1, INT_MAX };

	for (int at = 0; at < 3; at++)
		expect_ret(try_open(pids[at], WINDOW, 4), -EINVAL, "open of a pid that is none");
}

CHECK(open_thread, .place = "Creating the shadow page table", .rule = "The target is a process, not a thread",
      .did = "opened a table of a thread's tid", .expected = "-EINVAL",
      .mistake = "find_task_by_vpid() finds threads too", .hint = "thread_group_leader(task), or PIDTYPE_TGID", .points = 1)
{
	struct puppet target = new_puppet();

	expect_ret(try_open(p_thread(&target), WINDOW, 4), -EINVAL, "open of a tid");
}

CHECK(open_reversed, PLACE, .rule = "A start above the end gives EINVAL", .did = "opened a range whose end is below its start",
      .expected = "-EINVAL", .mistake = "the length is computed unsigned, and is huge",
      .hint = "Compare start and end before you subtract", .points = 2)
{
	struct puppet target = new_puppet();

	expect_ret(open_range(target.pid, WINDOW + 8 * PAGE, WINDOW), -EINVAL, "open");
}

CHECK(open_start_unaligned, PLACE, .rule = "A start that is not page-aligned gives EINVAL",
      .did = "opened a range whose start is one byte after a page's", .expected = "-EINVAL",
      .mistake = "the start is rounded silently, or not looked at", .hint = "offset_in_page(start)", .points = 1,
      .semesters = HAS_START)
{
	struct puppet target = new_puppet();

	expect_ret(open_range(target.pid, WINDOW + 1, WINDOW + 4 * PAGE), -EINVAL, "open");
}

CHECK(open_end_unaligned, PLACE, .rule = "An end that is not page-aligned gives EINVAL",
      .did = "opened a range whose end is one byte after a page's", .expected = "-EINVAL",
      .mistake = "only the start is checked", .hint = "offset_in_page(end)", .points = 1, .semesters = HAS_START)
{
	struct puppet target = new_puppet();

	expect_ret(open_range(target.pid, WINDOW, WINDOW + 4 * PAGE + 1), -EINVAL, "open");
}

CHECK(open_truncates, PLACE, .rule = "A range over the limit is cut at its end, and the caller's struct tells it",
      .did = "opened 2,049 pages, and read the struct again", .expected = "0, and an end of start + MAX_SPT_RANGE",
      .mistake = "the struct is changed in the kernel and not copied back", .hint = "copy_to_user(dest, …)", .points = 2)
{
	struct puppet target = new_puppet();

	open_table(target.pid, WINDOW, MAX_PAGES + 1);
	expect_that(now.end == WINDOW + MAX_RANGE, "the end is %#lx, start + %#lx", now.end, now.end - WINDOW);
}

CHECK(open_truncates_not_start, PLACE, .rule = "The start of a range over the limit stays",
      .did = "opened 4,096 pages, and read the struct again", .expected = "the same start",
      .mistake = "the range is cut at the wrong side", .hint = "end = start + MAX_SPT_RANGE", .points = 1)
{
	struct puppet target = new_puppet();

	open_table(target.pid, WINDOW, 2 * MAX_PAGES);
	expect_that(now.start == WINDOW, "the start is %#lx, not %#lx", now.start, WINDOW);
}

CHECK(open_limit, PLACE, .rule = "A range of exactly the limit is not cut", .did = "opened 2,048 pages, and read the struct",
      .expected = "0, and the same end", .mistake = ">= instead of >", .hint = "MAX_SPT_RANGE itself is allowed", .points = 1)
{
	struct puppet target = new_puppet();

	open_table(target.pid, WINDOW, MAX_PAGES);
	expect_that(now.end == WINDOW + MAX_RANGE, "the end is %#lx", now.end);
}

CHECK(open_truncated_tracks, PLACE, .rule = "A table that was cut has all its 2,048 entries",
      .did = "opened 2,049 pages, started, and wrote to page 2,047 (counted from 0)",
      .expected = "its entry is ALLOCATED, ANONYMOUS, MAPPED", .mistake = "the table has the size of the range before the cut, or one less",
      .hint = "Compute everything after the cut", .points = 1)
{
	struct puppet target = new_puppet();
	ulong_t last = WINDOW + MAX_RANGE - PAGE;

	watch(target.pid, WINDOW, MAX_PAGES + 1);
	p_mmap(&target, last, 2, RW, ANON);
	p_write(&target, last, 2, 1);
	expect(target.pid, last, 1, ANONYMOUS | MAPPED);
}

CHECK(open_bad_dest, PLACE, .rule = "An invalid pointer to the struct is an error", .did = "opened with dest NULL and with dest 8",
      .expected = "-EFAULT or -EINVAL", .mistake = "dest is read without copy_from_user()",
      .hint = "Never follow a user's pointer in the kernel", .points = 1)
{
	struct puppet target = new_puppet();

	expect_one_of(sp_open(target.pid, NULL), -EFAULT, -EINVAL, "open with dest NULL");
	expect_one_of(sp_open(target.pid, (void *)8), -EFAULT, -EINVAL, "open with dest 8");
}

CHECK(open_failure_leaves_nothing, PLACE, .rule = "An open that fails changes nothing",
      .did = "failed to open a reversed range, touched entries and a process that is gone, then opened rightly",
      .expected = "0 from the last", .mistake = "the global owner is set before all checks are made",
      .hint = "Set it last, or clear it on every way out", .points = 2)
{
	struct puppet target = new_puppet(), gone = new_puppet();
	char *touched = fresh(1);
	struct table bad = { WINDOW, WINDOW + 4 * PAGE, (void *)touched };

	end_puppet(&gone);
	touched[0] = 1;
	expect_failure(open_range(target.pid, WINDOW + PAGE, WINDOW), "open of a reversed range");
	expect_failure(sp_open(target.pid, &bad), "open over touched entries");
	expect_failure(try_open(gone.pid, WINDOW, 4), "open of a process that is gone");
	expect_ret(try_open(target.pid, WINDOW, 4), 0, "open after three that failed");
}
