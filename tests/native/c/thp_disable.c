/* Huge pages that prctl forbids: of a process, its child and its next program. */
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define HUGE (2UL << 20)
#define SET 41
#define GET 42

/* What /proc/self/smaps says of a mapping, in a line of that name. */
static long of_smaps(const void *addr, const char *name)
{
	char line[512];
	unsigned long start, end;
	long value = -1;
	int found = 0;
	FILE *smaps = fopen("/proc/self/smaps", "r");

	while (fgets(line, sizeof line, smaps)) {
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			found = start <= (unsigned long)addr && (unsigned long)addr < end;
		if (found && !strncmp(line, name, strlen(name)))
			sscanf(line + strlen(name), "%ld", &value);
	}
	fclose(smaps);
	return value;
}

static void show(const char *who)
{
	char *memory = mmap(0, 2 * HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char line[512];
	FILE *status = fopen("/proc/self/status", "r");

	madvise(memory, 2 * HUGE, MADV_HUGEPAGE);
	char *start = (char *)(((unsigned long)memory + HUGE - 1) & -HUGE);
	*start = 1;
	printf("%s: %d, eligible %ld, huge %ld kB, collapse %d, ", who, prctl(GET, 0, 0, 0, 0), of_smaps(start, "THPeligible:"),
	       of_smaps(start, "AnonHugePages:"), madvise(start, HUGE, 25));
	while (fgets(line, sizeof line, status))
		if (!strncmp(line, "THP_enabled", 11))
			fputs(line, stdout);
	fclose(status);
	munmap(memory, 2 * HUGE);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	if (argc > 1) {
		show("next program");
		return prctl(SET, 0, 0, 0, 0);
	}
	show("at first");
	printf("%d %d %d\n", prctl(SET, 1, 1, 0, 0), prctl(SET, 1, 0, 0, 1), prctl(GET, 1, 0, 0, 0));
	printf("%d\n", prctl(SET, 8, 0, 0, 0));
	show("forbidden");
	if (!fork()) {
		show("child");
		execl(argv[0], argv[0], "next", NULL);
	}
	wait(0);
	printf("%d\n", prctl(SET, 0, 0, 0, 0));
	show("allowed");
	return 0;
}
