/* The opener ends, in every way: the kernel cleans up as if it had called close. */
#define _GNU_SOURCE
#include "kit.h"

#include <signal.h>
#include <unistd.h>

#define PLACE .place = "Destroying the shadow page table: Inspector Process Exit"
#define RULE .rule = "However the inspector ends, the kernel cleans up as close does"
#define EXPECTED .expected = "the next open returns 0"
#define MISTAKE .mistake = "clean-up is only in the close call"
#define HINT .hint = "do_exit() is on the way of every end"

static struct puppet new_opener(struct puppet *target, int is_tracking)
{
	struct puppet opener = new_puppet();

	expect_ret(p_open(&opener, target->pid, WINDOW, 4, is_tracking), 0, "open by the process that will end");
	return opener;
}

static void dies_of(int how, const char *in_words)
{
	struct puppet target = new_puppet(), opener = new_opener(&target, 0);

	p_die(&opener, how);
	expect_soon_open(in_words);
}

CHECK(exit_return, PLACE, RULE, .did = "another process opened, and exited without close", EXPECTED, MISTAKE, HINT, .points = 2)
{
	dies_of(0, "after exit of the opener");
}

CHECK(exit_sigterm, PLACE, RULE, .did = "another process opened, and was ended by SIGTERM", EXPECTED,
      .mistake = "clean-up is in exit_group() and not in do_exit()", HINT, .points = 1)
{
	dies_of(SIGTERM, "after the opener's SIGTERM");
}

CHECK(exit_sigkill, PLACE, RULE, .did = "another process opened, and was killed by SIGKILL", EXPECTED,
      .mistake = "the inspector's own signal handler is trusted", HINT, .points = 2)
{
	struct puppet target = new_puppet(), opener = new_opener(&target, 0);

	end_puppet(&opener);
	expect_soon_open("after SIGKILL of the opener");
}

CHECK(exit_sigsegv, PLACE, RULE, .did = "another process opened, and was ended by SIGSEGV", EXPECTED, MISTAKE, HINT, .points = 1)
{
	dies_of(SIGSEGV, "after the opener's SIGSEGV");
}

CHECK(exit_sigabrt, PLACE, RULE, .did = "another process opened, and was ended by SIGABRT", EXPECTED, MISTAKE, HINT, .points = 1)
{
	dies_of(SIGABRT, "after the opener's SIGABRT");
}

CHECK(exit_by_thread, PLACE, RULE, .did = "another process opened, and one of its other threads called exit_group",
      EXPECTED, .mistake = "the clean-up compares current with the thread that called open, which ends later or earlier",
      .hint = "Compare the process (tgid), and clean up once", .points = 1)
{
	struct puppet target = new_puppet(), opener = new_opener(&target, 0);

	p_start_thread_exit(&opener);
	expect_soon_open("after exit_group by a thread of the opener");
}

CHECK(exit_while_tracking, PLACE, RULE, .did = "another process opened and started, and was killed; then the target wrote",
      .expected = "the target lives, and the next open returns 0", .mistake = "the notifier outlives the table it writes to",
      .hint = "Unregister it before the pages are freed", .points = 2)
{
	struct puppet target = new_puppet(), opener = new_opener(&target, 1);

	end_puppet(&opener);
	p_mmap(&target, WINDOW, 4, RW, ANON);
	p_write(&target, WINDOW, 4, 1);
	p_munmap(&target, WINDOW, 4);
	expect_soon_open("after SIGKILL of an opener that was tracking");
}

CHECK(exit_after_target, PLACE, RULE, .did = "the target ended first, then the opener was killed", EXPECTED,
      .mistake = "the target's mm is used after its end", .hint = "mmgrab() or mmget() as long as the table is open", .points = 1)
{
	struct puppet target = new_puppet(), opener = new_opener(&target, 1);

	end_puppet(&target);
	end_puppet(&opener);
	expect_soon_open("after the end of target and opener");
}

CHECK(exit_child_lives, PLACE, RULE, .did = "an opener forked a child and was killed; the child lives on", EXPECTED,
      .mistake = "the clean-up waits for the last copy of the memory", .hint = "The opener's own end is what counts", .points = 1)
{
	struct puppet target = new_puppet(), opener = new_opener(&target, 0), child = p_fork(&opener);

	end_puppet(&opener);
	expect_soon_open("after SIGKILL of an opener with a child");
	end_puppet(&child);
}

CHECK(exit_child_keeps_table, PLACE, .rule = "The end of another process, the opener's child, closes nothing",
      .did = "opened and started, forked a child that exited, and had the target write",
      .expected = "the table works on", .mistake = "a child's exit closes its parent's table", .hint = "Compare the process, not the mm or a flag that fork copies",
      .points = 1)
{
	struct puppet target = new_puppet(), child;

	watch(target.pid, WINDOW, 4);
	child = new_puppet();
	p_die(&child, 0);
	p_mmap(&target, WINDOW, 4, RW, ANON);
	p_write(&target, WINDOW, 1, 1);
	expect(target.pid, WINDOW, 1, ANONYMOUS | MAPPED);
}
