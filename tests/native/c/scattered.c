/* More pages than the host has mappings for, none a neighbour of another's frame: what is forgotten on the way comes again,
 * as written. Nearly all are the page of zeros, which is cheap to have many times. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#define PAGE 4096UL
#define WRITTEN 1024	/* every so many */
#define AROUND 16	/* so many pages come by one fault */
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif

int main(int argc, char **argv)
{
	unsigned long pages = argc > 1 ? strtoul(argv[1], 0, 0) : 70000, wrong = 0;
	char *memory = mmap(0, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (madvise(memory, pages * PAGE, MADV_POPULATE_READ))
		return 1;
	for (unsigned long i = 0; i < pages; i += WRITTEN)
		*(volatile unsigned long *)(memory + i * PAGE) = i + 1;
	for (unsigned long i = 0; i < pages; i += AROUND)
		wrong += *(volatile unsigned long *)(memory + i * PAGE) != (i % WRITTEN ? 0 : i + 1);
	for (unsigned long i = 0; i < pages; i += WRITTEN)
		wrong += *(volatile unsigned long *)(memory + i * PAGE) != i + 1;
	printf("%lu pages, %lu of them wrong\n", pages, wrong);
	return 0;
}
