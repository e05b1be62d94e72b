/*
 * An inspector of fall 2025's first part: prints the table's addresses, in their order, at each line of its input, and
 * closes it at the input's end. `faults PID SIZE [SHIFT]`: SHIFT bytes off the page, which is EINVAL.
 */
#define _GNU_SOURCE
#include <linux/shadowpt.h>

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	size_t size = argc > 2 ? strtoul(argv[2], NULL, 0) : 0;
	char *memory = mmap(NULL, 64 * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	unsigned long *table = (void *)(memory + (argc > 3 ? atol(argv[3]) : 0));

	if (argc < 3 || memory == MAP_FAILED)
		return 2;
	if (syscall(SYS_shadowpt_open, atoi(argv[1]), table, size) < 0) {
		perror("faults: shadowpt_open");
		return 1;
	}
	printf("open\n");
	fflush(stdout);
	while (getchar() != EOF) {
		for (size_t i = 0; i < size / sizeof(*table); i++)
			if (table[i] != 0)
				printf("%#lx ", table[i]);
		printf("\n");
		fflush(stdout);
	}
	if (syscall(SYS_shadowpt_close) < 0) {
		perror("faults: shadowpt_close");
		return 1;
	}
	table[0] = 1; /* the program's own again */
	return table[0] == 1 ? 0 : 1;
}
