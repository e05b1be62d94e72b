/* A real process as a target: one step at each line of its input, then one line of its output. Knows nothing of kerneld. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096UL
#define WINDOW ((char *)0x3000000000UL)
#define RW (PROT_READ | PROT_WRITE)

static void step(const char *done)
{
	int c;

	printf("%s\n", done);
	fflush(stdout);
	do
		c = getchar();
	while (c != '\n' && c != EOF);
	if (c == EOF)
		exit(0);
}

static void map(char *at, size_t pages, int flags, int fd)
{
	if (mmap(at, pages * PAGE, RW, flags | MAP_FIXED, fd, 0) != at)
		exit(1);
}

int main(int argc, char **argv)
{
	volatile char *window = WINDOW;
	FILE *self = fopen(argv[0], "r");
	char release[2];
	int ends[2];
	pid_t child;

	if (argc > 1 || self == NULL || pipe(ends) < 0) {
		step("second program");
		return 0;
	}
	step("ready");
	map(WINDOW, 8, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	madvise(WINDOW, 8 * PAGE, MADV_NOHUGEPAGE);
	step("mapped");
	strcpy(WINDOW, "hello");
	step("written");
	(void)window[PAGE];
	step("read");
	munmap(WINDOW + 4 * PAGE, 2 * PAGE);
	step("unmapped");
	mprotect(WINDOW, PAGE, PROT_READ);
	step("protected");
	mprotect(WINDOW, PAGE, RW);
	window[0] = 'H';
	child = fork();
	if (child == 0) {
		ssize_t got = read(ends[0], release, 1);
		_exit(got == 1 ? 0 : 1);
	}
	step("forked");
	window[0] = 'J';
	step("copied");
	if (write(ends[1], "x", 1) != 1 || waitpid(child, NULL, 0) != child)
		return 1;
	map(WINDOW + 12 * PAGE, 1, MAP_PRIVATE, fileno(self));
	step("file mapped");
	(void)window[12 * PAGE];
	step("file read");
	window[12 * PAGE] = 1;
	step("file written");
	execl("/proc/self/exe", argv[0], "again", (char *)NULL);
	return 1;
}
