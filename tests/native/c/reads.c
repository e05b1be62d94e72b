/* Reads as many further pages of a file as a line of its input says, and says so. Arguments: how far the next page is, and a
 * file of 128 pages, which it maps privately. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGES 128
#define PAGE 4096

int main(int argc, char **argv)
{
	int fd = open(argv[argc - 1], O_RDONLY), step = atoi(argv[argc - 2]), next = 0, count, right = 0;
	volatile unsigned char *file = mmap(0, PAGES * PAGE, PROT_READ, MAP_PRIVATE, fd, 0);
	printf("%d %p\n", getpid(), (void *)file);
	fflush(stdout);
	while (scanf("%d", &count) == 1) {
		for (; count; count--, next++)
			right += file[next * step % PAGES * PAGE] == next * step % PAGES;
		puts("done");
		fflush(stdout);
	}
	printf("right: %d\n", right);
	return 0;
}
