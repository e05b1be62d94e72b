/* Many at once, and many in turn. */
#define _GNU_SOURCE
#include "kit.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define TRACKED .place = "When VMAs are updated"
#define OPENED .place = "Creating the shadow page table"
#define THREADS 4
#define ROUNDS 400
#define PHASES 5
#define PHASE_MS 4000

static long memory_kb(void)
{
	char line[128];
	long kb = -1;
	FILE *file = fopen("/proc/meminfo", "re");

	while (file && fgets(line, sizeof(line), file))
		if (sscanf(line, "MemAvailable: %ld", &kb) == 1)
			break;
	if (file)
		fclose(file);
	return kb;
}

CHECK(stress_threads, TRACKED, .rule = "No update is lost when several threads of the target change its memory",
      .did = "had 4 threads map, write and unmap 256 pages at random, then compared", .expected = "the table is what maps and pagemap say",
      .mistake = "two updates at once overwrite one another, without a lock", .hint = "A spinlock around the update; compute the state under it", .points = 3, .seconds = 120)
{
	struct puppet target = new_puppet();

	watch(target.pid, WINDOW, 256);
	p_hammer(&target, WINDOW, 256, THREADS, ROUNDS);
	p_wait(&target);
	expect_truth(target.pid);
}

CHECK(stress_start_stop, .place = "Beginning and end of tracking", .rule = "Start is right at any moment", .did = "started and stopped 100 times while 4 threads of the target worked, then started",
      .expected = "the table is what maps and pagemap say", .mistake = "a change between the fill and the registration is lost", .hint = "Register first, fill after it", .points = 1,
      .seconds = 120, .semesters = HAS_START)
{
	struct puppet target = new_puppet();

	open_table(target.pid, WINDOW, 256);
	p_hammer(&target, WINDOW, 256, THREADS, ROUNDS);
	for (int round = 0; round < 100; round++) {
		expect_ret(sp_start(), 0, "start");
		if (round % 2)
			expect_ret(sp_stop(), 0, "stop");
	}
	expect_ret(sp_start(), 0, "start");
	p_wait(&target);
	expect_truth(target.pid);
}

CHECK(stress_two_openers, OPENED, .rule = "Of two processes that open at once, one gets the table", .did = "had a second process open after each open and each close, 100 times",
      .expected = "EBUSY while the table is open, 0 after close", .mistake = "check and set of the owner are not one step", .hint = "cmpxchg(), or a mutex", .points = 1, .seconds = 60)
{
	struct puppet target = new_puppet(), other = new_puppet();

	for (int round = 0; round < 100; round++) {
		open_table(target.pid, WINDOW, 4);
		expect_ret(p_open(&other, target.pid, WINDOW, 4, 0), -EBUSY, "open while the table is open");
		expect_ret(sp_close(), 0, "close");
		expect_ret(p_open(&other, target.pid, WINDOW, 4, 0), 0, "open after close");
		expect_ret(p_call(&other, abi->close, 0L, 0L, 0L, 0L, 0L, 0L), 0, "close by the other");
	}
}

CHECK(stress_opener_killed, OPENED, .rule = "An opener may be killed at any moment", .did = "killed 30 openers of a target with 4 busy threads",
      .expected = "the table is free each time", .mistake = "a lock is held by the dead, or the notifier writes to freed pages", .hint = "KASAN and lockdep tell which", .points = 1, .seconds = 120)
{
	struct puppet target = new_puppet(), opener;

	p_hammer(&target, WINDOW, 256, THREADS, ROUNDS);
	for (int round = 0; round < 30; round++) {
		begin_patience();
		do {
			long ret;

			opener = new_puppet();
			ret = p_open(&opener, target.pid, WINDOW, 256, 1);
			end_puppet(&opener);
			if (ret == 0)
				break;
			expect_that(ret == -EBUSY, "open gives %s", errno_text((int)-ret));
		} while (is_in_time());
	}
	p_wait(&target);
	expect_soon_open("after 30 killed openers");
}

CHECK(stress_target_dies, OPENED, .rule = "A target may end at any moment", .did = "killed 30 targets with busy threads while they were watched",
      .expected = "close returns 0 each time, and the kernel lives", .mistake = "the mm or the task is used after its end", .hint = "get_task_mm() and mmput(), mmgrab() and mmdrop()", .points = 1, .seconds = 120)
{
	for (int round = 0; round < 30; round++) {
		struct puppet target = new_puppet();

		p_hammer(&target, WINDOW, 64, 2, 100000);
		watch(target.pid, WINDOW, 64);
		end_puppet(&target);
		if (round % 2)
			expect(target.pid, WINDOW, 64, 0);
		expect_ret(sp_close(), 0, "close after the target's end");
	}
}

/* Open and close tables of 2,048 pages, a fifth of all or for some seconds; return the KiB that all those tables were. */
static long open_many(pid_t target, void *entries)
{
	long rounds = 0;

	begin_patience();
	for (; rounds < nr_opens / PHASES && ms_of_patience() < PHASE_MS; rounds++) {
		now = (struct table){ WINDOW, WINDOW + MAX_RANGE, entries };
		expect_ret(sp_open(target, &now), 0, "open");
		expect_ret(sp_close(), 0, "close");
	}
	return rounds * (long)(MAX_PAGES * sizeof(struct spte) / 1024);
}

CHECK(stress_opens, OPENED, .rule = "Open and close, ten thousand times, keep no memory", .did = "opened and closed tables of 2,048 pages --opens times in five parts, and compared the available memory",
      .expected = "not in four of the five parts is as much gone as half of its tables", .mistake = "close does not free the table's pages", .hint = "free_pages_exact() with the size of alloc_pages_exact()", .points = 2, .seconds = 120)
{
	struct puppet target = new_puppet();
	void *entries = fresh(MAX_PAGES * sizeof(struct spte) / PAGE);
	long gone = 0, used = 0;
	int leaks = PHASES;

	/* Other processes take memory too, for a while: a leak goes on. */
	for (int attempt = 0; attempt < 3 && leaks >= PHASES - 1; attempt++) {
		leaks = 0;
		for (int phase = 0; phase < PHASES; phase++) {
			long before = memory_kb();

			used = open_many(target.pid, entries);
			gone = before - memory_kb();
			leaks += gone > used / 2;
		}
	}
	expect_that(leaks < PHASES - 1, "of %d parts %d lost memory; in the last %ld KiB are gone, of %ld KiB that were tables",
		    PHASES, leaks, gone, used);
}
