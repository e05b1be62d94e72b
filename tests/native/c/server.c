/* A server that makes a child for each request: 500 children, eight at a time, each of which uses its memory. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHILDREN 500
#define AT_ONCE 8

int main(void)
{
	char *private = malloc(1 << 20);
	int *shared = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int started = 0, ended = 0, sum = 0, status;
	memset(private, 1, 1 << 20);
	while (ended < CHILDREN) {
		if (started < CHILDREN && started - ended < AT_ONCE) {
			if (!fork()) {
				private[started * 2048 % (1 << 20)] = 7;
				__atomic_fetch_add(shared, 1, __ATOMIC_SEQ_CST);
				_exit(private[started * 2048 % (1 << 20)] + started % 100 + private[12345 + started % 7]);
			}
			started++;
			continue;
		}
		if (wait(&status) < 0 || !WIFEXITED(status))
			return 1;
		sum += WEXITSTATUS(status);
		ended++;
	}
	for (int i = 0; i < 1 << 20; i++)
		if (private[i] != 1)
			return 2;
	printf("%d children, sum %d\n", *shared, sum);
	return 0;
}
