/* Reads some pages, and writes to one for each byte of its input, and says which; at the end all must be as written. */
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGES 16

int main(void)
{
	unsigned char *p = mmap((void *)0x10000000, PAGES * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), byte;
	volatile int sum = 0;
	int done = 0;
	for (int i = 0; i < PAGES; i++)
		sum += p[i * 4096];
	while (done < PAGES && read(0, &byte, 1) == 1) {
		p[done * 4096] = byte;
		printf("%p\n", (void *)(p + done++ * 4096));
		fflush(stdout);
	}
	for (int i = 0; i < done; i++)
		if (p[i * 4096] != 'a' + i)
			return 1;
	return 0;
}
