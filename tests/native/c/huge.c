/* Memory in huge pages: filled, copied by a fork, cut up by munmap and mprotect. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define HUGE (2UL << 20)

int main(void)
{
	char *p = mmap(0, 4 * HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	long sum = 0;
	int status;
	p = (char *)(((unsigned long)p + HUGE - 1) & -HUGE);
	madvise(p, 3 * HUGE, MADV_HUGEPAGE);
	for (unsigned long i = 0; i < HUGE; i += 4096)
		sum += p[i];		/* the huge zero page */
	for (unsigned long i = 0; i < 3 * HUGE; i += 512)
		p[i] = i / 4096 + 1;
	if (!fork()) {
		for (unsigned long i = 0; i < 2 * HUGE; i += 4096)
			p[i]++;
		_exit(p[0]);
	}
	wait(&status);
	munmap(p + HUGE + 4096, 4096);
	mprotect(p + 2 * HUGE + 8192, 4096, PROT_READ);
	for (unsigned long i = 0; i < 3 * HUGE; i += 4096)
		if (i != HUGE + 4096)
			sum += p[i];
	printf("%ld %d\n", sum, WEXITSTATUS(status));
	return 0;
}
