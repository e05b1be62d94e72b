/* Threads (sixteen, or as many as told) map, write, check and unmap at once. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#define MOST 64
#define BYTES 65536

static void *work(void *argument)
{
	long own = (long)argument + 1, sum = 0;
	for (int round = 0; round < 3; round++) {
		char *p = mmap(0, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		for (int i = 0; i < BYTES; i += 4096) {
			if (p[i])
				abort();	/* another's page */
			p[i] = own;
		}
		for (int i = 0; i < BYTES; i += 4096) {
			if (p[i] != own)
				abort();
			sum += p[i];
		}
		munmap(p, BYTES);
	}
	return (void *)sum;
}

int main(int argc, char **argv)
{
	pthread_t threads[MOST];
	int count = argc > 1 ? atoi(argv[1]) : 16;
	long sum = 0;
	for (long i = 0; i < count; i++)
		if (pthread_create(&threads[i], 0, work, (void *)i))
			return 1;
	for (int i = 0; i < count; i++) {
		void *own;
		pthread_join(threads[i], &own);
		sum += (long)own;
	}
	printf("%ld\n", sum);
	return 0;
}
