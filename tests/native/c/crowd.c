/* More children at once, and then more threads, than a machine of 1,024 connections has room for: all wait, then all write.
 *
 * crowd CHILDREN THREADS */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

static int begin[2], *sum;

static void *wait_and_write(void *written)
{
	char byte;
	while (read(begin[0], &byte, 1) < 0 && errno == EINTR)
		;
	__atomic_fetch_add(sum, 1, __ATOMIC_SEQ_CST);
	return written;
}

static int children(int count)
{
	int made = 0, ended = 0, status;
	for (; made < count; made++) {
		pid_t child = fork();
		if (child < 0)
			break;
		if (!child) {
			close(begin[1]);
			wait_and_write(0);
			_exit(0);
		}
	}
	close(begin[1]);
	while (wait(&status) > 0)
		ended += !status;
	return ended;
}

static int threads(int count)
{
	static pthread_t thread[4096];
	pthread_attr_t attributes;
	int made = 0, error = 0;
	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, 1 << 16);
	while (made < count && !(error = pthread_create(&thread[made], &attributes, wait_and_write, 0)))
		made++;
	if (error)
		printf("(no more: %s) ", strerror(error));
	close(begin[1]);
	for (int i = 0; i < made; i++)
		pthread_join(thread[i], 0);
	return made;
}

int main(int count, char **words)
{
	if (count < 3)
		return 1;
	sum = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pipe(begin);
	printf("%d children", children(atoi(words[1])));
	printf(", sum %d\n", *sum);
	pipe(begin);
	printf("%d threads", threads(atoi(words[2])));
	printf(", sum %d\n", *sum);
	return 0;
}
