/* Threads that make threads at the same time, in a program that has as many files open as it may.
 *
 * makers MAKERS THREADS */
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int count, error;

static void *end(void *nothing)
{
	return nothing;
}

static void *make(void *made)
{
	pthread_t thread;
	for (int i = 0; i < count; i++) {
		int failure = pthread_create(&thread, 0, end, 0);
		if (failure) {
			error = failure;
			break;
		}
		pthread_join(thread, 0);
		++*(int *)made;
	}
	return 0;
}

int main(int words, char **word)
{
	static pthread_t thread[64];
	static int made[64];
	int makers = words > 2 ? atoi(word[1]) : 0, sum = 0;
	count = words > 2 ? atoi(word[2]) : 0;
	while (open("/dev/null", O_RDONLY) >= 0)
		;
	for (int i = 0; i < makers; i++)
		pthread_create(&thread[i], 0, make, &made[i]);
	for (int i = 0; i < makers; i++) {
		pthread_join(thread[i], 0);
		sum += made[i];
	}
	printf("%d threads made, %s\n", sum, error ? strerror(error) : "no error");
	return 0;
}
