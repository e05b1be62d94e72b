/* A real process that faults where it is told: maps four pages at 0x7e0000000000, and writes to one at each line. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

int main(void)
{
	char *memory = mmap((void *)0x7e0000000000, 0x4000, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	char line[64];

	printf("ready\n");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin) != NULL) {
		*(volatile char *)(line[0] == 'd' ? (char *)0x18 : memory + strtoul(line, NULL, 16)) = 1;
		printf("done\n");
		fflush(stdout);
	}
	return memory == MAP_FAILED;
}
