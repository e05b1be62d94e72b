/* The target of a made-up submission. Without a macro it makes every change. MISTAKES is a mask of what it leaves out. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { NO_WRITE, NO_COW, NO_UNMAP, NO_STACK, NO_EXECVE, CRASHES, HURRIES, NO_MAP };
#ifndef MISTAKES
#define MISTAKES 0
#endif
#define MAKES(mistake) ((MISTAKES) >> (mistake) & 1)

#define PAGE 4096UL
#define PAGES 8UL

static void step(const char *what)
{
	printf("%s\n", what);
	fflush(stdout);
	if (!MAKES(HURRIES))
		usleep(700 * 1000);
}

static int deep(int depth)
{
	volatile char room[4096];

	memset((char *)room, depth, sizeof(room));
	return depth ? deep(depth - 1) + room[7] : room[9];
}

static void fork_and_write(char *memory)
{
	/* The child of vfork has its parent's memory, and copies nothing. */
	pid_t child = MAKES(NO_COW) ? vfork() : fork();

	if (child == 0) {
		if (MAKES(NO_EXECVE))
			_exit(0);
		execl("/bin/true", "true", (char *)NULL);
		_exit(1);
	}
	waitpid(child, NULL, 0);
	if (!MAKES(NO_WRITE))
		memory[0] = 'p';
}

static char is_static[PAGES * PAGE] __attribute__((aligned(4096)));

int main(void)
{
	char *memory = is_static;

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (!MAKES(NO_MAP))
		memory = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		return 1;
	printf("pid %d, watch %p to %p\n", getpid(), (void *)memory, (void *)(memory + PAGES * PAGE));
	step("mapped");
	if (MAKES(NO_WRITE))
		printf("%d\n", memory[0] + memory[PAGE]);
	else
		memset(memory, 'w', 4 * PAGE);
	step("written");
	fork_and_write(memory);
	step("copied");
	if (!MAKES(NO_STACK) && deep(100) == 12345)
		return 3;
	step("grown");
	if (!MAKES(NO_UNMAP) && !MAKES(NO_MAP))
		munmap(memory, 2 * PAGE);
	step("unmapped");
	if (MAKES(CRASHES))
		abort();
	return 0;
}
