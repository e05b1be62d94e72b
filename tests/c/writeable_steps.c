/* A real process whose entries become writeable and read-only: one step at each line of its input, then one of its output. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096UL
#define WINDOW ((volatile char *)0x3000000000UL)
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

static void map(size_t page, int prot, int flags, int fd)
{
	if (mmap((void *)(WINDOW + page * PAGE), PAGE, prot, flags | MAP_FIXED, fd, 0) == MAP_FAILED)
		exit(1);
}

int main(int argc, char **argv)
{
	int fd = argc > 1 ? open(argv[1], O_RDWR | O_CREAT, 0600) : -1;
	pid_t child;

	if (fd < 0 || ftruncate(fd, PAGE) < 0 || write(fd, "on disk", 7) != 7 || fsync(fd) < 0)
		return 1;
	step("ready");
	map(0, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	WINDOW[0] = 1;
	step("written");
	child = fork();
	if (child == 0)
		_exit(0);
	waitpid(child, NULL, 0);
	step("child gone");
	WINDOW[0] = 2;
	step("written again");
	map(1, RW, MAP_SHARED, fd);
	(void)WINDOW[PAGE];
	step("file read");
	WINDOW[PAGE] = 1;
	step("file written");
	if (fsync(fd) < 0)
		return 1;
	step("file on disk");
	map(2, RW, MAP_SHARED | MAP_ANONYMOUS, -1);
	(void)WINDOW[2 * PAGE];
	step("shared read");
	map(3, RW, MAP_PRIVATE, fd);
	(void)WINDOW[3 * PAGE];
	step("private file read");
	WINDOW[3 * PAGE] = 1;
	step("private file written");
	map(4, PROT_READ, MAP_SHARED, fd);
	(void)WINDOW[4 * PAGE];
	step("read-only mapping read");
	return 0;
}
