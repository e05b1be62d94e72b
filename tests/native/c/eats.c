/* Writes to so many MiB, twice, and checks what it has written. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

int main(int argc, char **argv)
{
	long bytes = (argc > 1 ? atol(argv[1]) : 1) << 20;
	char *p = mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	for (int round = 1; round < 3; round++) {
		for (long i = 0; i < bytes; i += 4096)
			*(long *)(p + i) = i + round;
		for (long i = 0; i < bytes; i += 4096)
			if (*(long *)(p + i) != i + round)
				abort();
	}
	puts("all as written");
	return 0;
}
