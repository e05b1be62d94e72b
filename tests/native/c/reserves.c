/* Memory without access over most of the address space, as sanitizers reserve it (TSan: 0x6200'0000'0000 to 0x7b00'0000'0000),
 * and what a program does there: a child, a part given back and made accessible, the rest unmapped. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define LOW ((char *)0x620000000000)
#define HIGH ((char *)0x7b0000000000)
#define PAGE 4096
#define HOW (MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)

static void said(const char *what, int failed)
{
	printf("%s: %s\n", what, failed ? strerror(errno) : "done");
	fflush(stdout);
}

static void show(void)
{
	char line[512];
	unsigned long start, end;
	FILE *maps = fopen("/proc/self/maps", "r");
	while (fgets(line, sizeof line, maps))
		if (sscanf(line, "%lx-%lx", &start, &end) == 2 && (char *)start < HIGH && (char *)end > LOW)
			printf("  %.30s\n", line);
	fclose(maps);
}

int main(void)
{
	char *at = mmap(LOW, HIGH - LOW, PROT_NONE, HOW | MAP_FIXED_NOREPLACE, -1, 0);
	said("reserved", at != LOW);
	said("part of it", mprotect(LOW + PAGE, PAGE, PROT_READ | PROT_WRITE));
	LOW[PAGE] = 5;
	show();
	fflush(stdout);
	pid_t child = fork();
	if (!child) {
		LOW[PAGE] += 2;
		printf("child: %d\n", LOW[PAGE]);
		show();
		char *words[] = {"/bin/echo", "another program", NULL};
		fflush(stdout);
		execv(words[0], words);
	}
	int status;
	waitpid(child, &status, 0);
	printf("parent: %d, status %d\n", LOW[PAGE], status);
	at = mmap(HIGH - 2 * PAGE, PAGE, PROT_READ | PROT_WRITE, HOW | MAP_FIXED, -1, 0);
	said("another part", at != HIGH - 2 * PAGE || (*at = 1, *at != 1));
	at = mremap(LOW + 16 * PAGE, 16 * PAGE, 16 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, LOW - 64 * PAGE);
	said("moved out", at != LOW - 64 * PAGE);
	show();
	said("unmapped", munmap(LOW, HIGH - LOW));
	show();
	return 0;
}
