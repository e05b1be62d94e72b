/* More pages than the host has mappings for, none beside another: what is forgotten on the way comes again, as written. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#define PAGE 4096UL

int main(int argc, char **argv)
{
	unsigned long pages = argc > 1 ? strtoul(argv[1], 0, 0) : 70000, wrong = 0;
	char *memory = mmap(0, 2 * pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	for (unsigned long i = 0; i < pages; i++)
		*(unsigned long *)(memory + 2 * i * PAGE) = i;
	for (unsigned long i = 0; i < pages; i += 64)
		wrong += *(unsigned long *)(memory + 2 * i * PAGE) != i;
	printf("%lu pages, %lu of them wrong\n", pages, wrong);
	return 0;
}
