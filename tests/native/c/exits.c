/* Exits while its threads make memory calls and faults. */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define THREADS 6
#define CALLS 20

static atomic_int made;

static void *run(void *unused)
{
	(void)unused;
	for (;;) {
		char *p = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		p[4096] = 1;
		munmap(p, 8192);
		made++;
	}
	return 0;
}

int main(void)
{
	pthread_t thread;
	for (int i = 0; i < THREADS; i++)
		if (pthread_create(&thread, 0, run, 0))
			return 1;
	while (made < THREADS * CALLS)
		sched_yield();
	_exit(7);
}
