/* Stores to a mapped hole of a file, while the file system at argv[1] is full, and afterwards. */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096

/* In a child, whose end tells: 0, or a signal. */
static int store(char *at)
{
	int status;

	fflush(stdout);
	if (!fork()) {
		*at = 'x';
		_exit(0);
	}
	wait(&status);
	return WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status);
}

int main(int argc, char **argv)
{
	static char data[PAGE];
	char found;
	int file, filler;

	if (argc < 2 || chdir(argv[1]))
		return 1;
	file = open("file", O_RDWR | O_CREAT | O_TRUNC, 0600);
	filler = open("filler", O_RDWR | O_CREAT, 0600);
	if (write(file, data, PAGE) != PAGE || ftruncate(file, 4 * PAGE))
		return 1;
	char *map = mmap(0, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	printf("a hole: %d\n", store(map + PAGE));
	while (write(filler, data, PAGE) > 0)
		;
	printf("full: data %d", store(map));
	printf(", the same hole %d", store(map + PAGE));
	printf(", another one %s\n", store(map + 2 * PAGE) == SIGBUS ? "SIGBUS" : "nothing");
	if (ftruncate(filler, 0))
		return 1;
	printf("room again: %d\n", store(map + 2 * PAGE));
	msync(map, 4 * PAGE, MS_SYNC);
	printf("in the file:");
	for (int page = 0; page < 4; page++)
		printf(" %d", pread(file, &found, 1, page * PAGE) == 1 && found == 'x');
	printf("\n");
	return 0;
}
