/*
 * Time that counts: how long a process of this kit could have run. On a busy machine a check waits for its turn, and so
 * does what serves it; that is no hang. If six processes want to run on two processors, a second counts as a third of one.
 *
 * procs_running in /proc/stat is the number of processes that run or wait for a processor: Linux v6.8
 * fs/proc/stat.c:show_stat(). Unlike /proc/pressure and /proc/PID/schedstat, every kernel has it.
 */
#include "kit.h"

#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#define LATE_MS (2 * LOOK_MS) /* who looks every LOOK_MS, and comes later than this, was itself kept waiting */
#define NICE_STEP 1.25        /* each nice level weighs so much less: kernel/sched/core.c:sched_prio_to_weight */

static double ms_between(const struct timespec *from, const struct timespec *to)
{
	return (double)(to->tv_sec - from->tv_sec) * 1e3 + (double)(to->tv_nsec - from->tv_nsec) / 1e6;
}

/* Read how many processes want to run, this one among them, and how many processors there are; 0 where it is not told. */
static int read_stat(long *running, long *processors)
{
	FILE *file = fopen("/proc/stat", "re");
	char line[512];
	int number;

	*running = *processors = 0;
	while (file && fgets(line, sizeof(line), file)) {
		*processors += sscanf(line, "cpu%d", &number) == 1;
		if (sscanf(line, "procs_running %ld", running) == 1)
			break;
	}
	if (file)
		fclose(file);
	return *running > 0 && *processors > 0;
}

int is_load_known(void)
{
	long running, processors;

	return read_stat(&running, &processors);
}

/* The part of a processor that a process with this one's nice level gets now. 1: nobody waits, or nothing is known. */
static double share(void)
{
	long running, processors, wanting;
	int nice_level = getpriority(PRIO_PROCESS, 0);
	double weight = 1;

	if (!read_stat(&running, &processors))
		return 1;
	wanting = running - 1; /* this one only looks */
	if (wanting <= processors)
		return 1;
	for (; nice_level > 0; nice_level--)
		weight *= NICE_STEP;
	/* One of them is ours; the others may have the usual nice level. */
	return (double)processors / (1 + (double)(wanting - 1) * weight);
}

void start_watch(struct stopwatch *watch)
{
	clock_gettime(CLOCK_MONOTONIC, &watch->began);
	watch->looked = watch->began;
	watch->counted = 0;
}

long ms_elapsed(const struct stopwatch *watch)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	return (long)ms_between(&watch->began, &at);
}

long ms_counted(struct stopwatch *watch)
{
	struct timespec at;
	double ms;

	clock_gettime(CLOCK_MONOTONIC, &at);
	ms = ms_between(&watch->looked, &at);
	if (ms >= LOOK_MS) {
		watch->counted += (ms < LATE_MS ? ms : LATE_MS) * share();
		watch->looked = at;
	}
	return (long)watch->counted;
}
