/* Which memory may be merged with equal pages (KSM): by advice, and of a whole process, its child and its next program. */
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096UL
#define SET_MEMORY_MERGE 67
#define GET_MEMORY_MERGE 68

static int is_mergeable(void *addr)
{
	char line[512];
	unsigned long start, end;
	int found = 0, mergeable = -1;
	FILE *smaps = fopen("/proc/self/smaps", "r");

	while (fgets(line, sizeof line, smaps)) {
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			found = start <= (unsigned long)addr && (unsigned long)addr < end;
		if (found && !strncmp(line, "VmFlags:", 8))
			mergeable = strstr(line, " mg") != 0;
	}
	fclose(smaps);
	return mergeable;
}

static void *map(int flags)
{
	return mmap(0, PAGE, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);
}

int main(int argc, char **argv)
{
	void *private = map(MAP_PRIVATE), *shared = map(MAP_SHARED);

	if (argc > 1) {
		printf("the next program: %d %d\n", prctl(GET_MEMORY_MERGE, 0, 0, 0, 0), is_mergeable(private));
		return 0;
	}
	printf("advice: %d", madvise(private, PAGE, MADV_MERGEABLE));
	printf(" %d", madvise(shared, PAGE, MADV_MERGEABLE));
	printf(", mergeable: %d %d", is_mergeable(private), is_mergeable(shared));
	printf(", not: %d", madvise(private, PAGE, MADV_UNMERGEABLE));
	printf(" %d\n", is_mergeable(private));
	printf("too many arguments: %d %d\n", prctl(SET_MEMORY_MERGE, 1, 0, 0, 1), prctl(GET_MEMORY_MERGE, 1, 0, 0, 0));
	printf("all of it: %d", prctl(SET_MEMORY_MERGE, 1, 0, 0, 0));
	printf(", before: %d %d, later: %d\n", is_mergeable(private), is_mergeable(shared), is_mergeable(map(MAP_PRIVATE)));
	fflush(stdout);
	if (!fork()) {
		printf("the child: %d %d\n", prctl(GET_MEMORY_MERGE, 0, 0, 0, 0), is_mergeable(private));
		fflush(stdout);
		execl(argv[0], argv[0], "again", (char *)0);
	}
	wait(0);
	printf("none: %d", prctl(SET_MEMORY_MERGE, 0, 0, 0, 0));
	printf(" %d %d\n", prctl(GET_MEMORY_MERGE, 0, 0, 0, 0), is_mergeable(private));
	return 0;
}
