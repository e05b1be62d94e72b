/* Names of memory: what maps shows of them, of a process, its child and its next program, and the errors. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096UL
#define SET_VMA 0x53564d41
#define RW (PROT_READ | PROT_WRITE)

static void show(const char *who)
{
	char line[512], *name;
	FILE *maps = fopen("/proc/self/maps", "r");
	unsigned long start, end;

	printf("%s:", who);
	while (fgets(line, sizeof line, maps))
		if (sscanf(line, "%lx-%lx", &start, &end) == 2 && (name = strstr(line, "[anon")))
			printf(" %lu %s", (end - start) / PAGE, strtok(name, "\n"));
	printf("\n");
	fclose(maps);
	fflush(stdout);
}

static int give(const void *at, unsigned long pages, const char *name)
{
	return prctl(SET_VMA, 0, at, pages * PAGE, name) ? -errno : 0;
}

int main(int argc, char **argv)
{
	/* In an order of its own, with nothing beside them: where mmap puts them is a matter of the C library. */
	char long_name[100], *place = mmap(0, 64 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *edge = mmap(place + 8 * PAGE, 2 * PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	char *shared = mmap(place + 24 * PAGE, PAGE, RW, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	char *memory = mmap(place + 40 * PAGE, 8 * PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);

	if (argc > 1) {
		show("next program");
		return 0;
	}
	munmap(edge + PAGE, PAGE);
	memset(long_name, 'n', sizeof long_name);
	printf("named: %d %d\n", give(memory + PAGE, 6, "an arena"), give(shared, 1, "shared"));
	show("process");
	mprotect(memory + 2 * PAGE, PAGE, PROT_READ);
	printf("another: %d\n", give(memory + 4 * PAGE, 1, strcpy(edge + PAGE - 6, "other")));
	show("parts");
	memcpy(edge + PAGE - 6, "no NUL", 6);
	printf("errors: %d %d", give(memory, 1, edge + PAGE - 6), give(memory, 1, edge + PAGE));
	printf(" %d %d %d", give(memory, 1, long_name), give(memory, 1, "[x]"), give(memory + 1, 1, "x"));
	printf(" %d %d\n", give(edge, 2, "x"), give((void *)main - (unsigned long)main % PAGE, 1, "x"));
	fflush(stdout);
	if (!fork()) {
		show("child");
		execl(argv[0], argv[0], "next", NULL);
	}
	wait(0);
	long_name[79] = 0;
	printf("long: %d\n", give(memory, 8, long_name));
	give(edge, 1, 0);
	show("all of it");
	return 0;
}
