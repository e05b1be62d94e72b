/* Writes to a page, and makes a thread when its input says so, which checks the page. */
#include <pthread.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

static void *check(void *p)
{
	return *(char *)p == 'a' ? p : 0;
}

int main(void)
{
	char *p = mmap((void *)0x10000000, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), byte;
	pthread_t thread;
	void *ret = 0;
	*p = 'a';
	printf("%p\n", (void *)p);
	fflush(stdout);
	if (read(0, &byte, 1) != 1 || pthread_create(&thread, 0, check, p) || pthread_join(thread, &ret))
		return 1;
	return ret == p ? 0 : 2;
}
