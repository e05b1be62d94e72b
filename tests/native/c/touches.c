/* Writes to as many further pages as a line of its input says, and says so. Arguments: a file of 128 pages, which it maps
 * privately and reads first; the first half of what it writes to is anonymous memory. */
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#define PAGES 128
#define PAGE 4096

int main(int argc, char **argv)
{
	int fd = open(argv[argc - 1], O_RDONLY), next = 0, count;
	volatile char *memory = mmap(0, PAGES * PAGE, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	volatile char *file = mmap(0, PAGES * PAGE, 3, MAP_PRIVATE, fd, 0);
	struct rlimit none = {0, 0};
	setrlimit(RLIMIT_FSIZE, &none);
	for (int page = 0; page < PAGES; page++)
		(void)file[page * PAGE];
	printf("%d %p %p\n", getpid(), (void *)memory, (void *)file);
	fflush(stdout);
	while (scanf("%d", &count) == 1) {
		for (; count; count--, next++) {
			volatile char *page = (next < PAGES ? memory : file - PAGES * PAGE) + next * PAGE;
			page[1] = 7;
		}
		puts("done");
		fflush(stdout);
	}
	int right = 0;
	for (int page = 0; page < PAGES; page++) {
		right += page >= next || (memory[page * PAGE] == 0 && memory[page * PAGE + 1] == 7);
		right += page >= next - PAGES || (file[page * PAGE] == (char)page && file[page * PAGE + 1] == 7);
	}
	printf("right: %d\n", right);
	return 0;
}
