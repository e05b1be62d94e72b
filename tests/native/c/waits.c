/* Faults in pages of each kind, and waits for its standard input to end. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

int main(void)
{
	char *p = mmap((void *)0x10000000, 64 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), byte;
	memset(p, 1, 16 * 4096);
	volatile char sum = p[20 * 4096];	/* the zero page */
	mprotect(p, 4096, PROT_READ);
	munmap(p + 4096, 4096);
	if (!fork()) {
		p[3 * 4096] = 2;
		_exit(sum);
	}
	wait(0);
	p[2 * 4096] = 3;	/* after the fork: ours alone again */
	printf("%p\n", (void *)p);
	fflush(stdout);
	return read(0, &byte, 1) ? 1 : 0;
}
