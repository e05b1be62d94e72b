/* A program that lowers its limit of open files and uses it up: it still forks, makes threads and becomes another program,
 * and each limit is as it has set it. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static void show(const char *when)
{
	struct rlimit limit;
	getrlimit(RLIMIT_NOFILE, &limit);
	printf("%s: %lu of %lu\n", when, (unsigned long)limit.rlim_cur, (unsigned long)limit.rlim_max);
	fflush(stdout);
}

static void set(unsigned long soft, unsigned long hard)
{
	struct rlimit limit = {soft, hard};
	printf("set %lu of %lu: %s\n", soft, hard, setrlimit(RLIMIT_NOFILE, &limit) ? strerror(errno) : "done");
}

static void *thread(void *count)
{
	++*(int *)count;
	return 0;
}

static int use_up(void)
{
	int count = 0, fd;
	while ((fd = open("/dev/null", O_RDONLY)) >= 0)
		count = fd;
	printf("the last descriptor: %d, then %s\n", count, strerror(errno));
	printf("a copy far up: %s\n", dup2(0, 1000) < 0 ? strerror(errno) : "done");
	return count;
}

int main(int argc, char **argv)
{
	pthread_t other;
	int count = 0, status, last;
	if (argc > 1) {
		show("in the next program");
		printf("still open: %s\n", fcntl(10, F_GETFD) < 0 ? "no" : "yes");
		return 0;
	}
	set(100, 90);
	set(64, 2000);
	show("now");
	last = use_up();
	fflush(stdout);
	pthread_create(&other, 0, thread, &count);
	pthread_join(other, 0);
	if (!fork()) {
		if (!fork())
			_exit(close(last) + open("/dev/null", O_RDONLY) == last ? 3 : 4);
		wait(&status);
		_exit(WEXITSTATUS(status));
	}
	wait(&status);
	printf("a thread: %d, a child of a child: %x\n", count, status);
	set(20, 70);
	show("now");
	set(70, 70);
	if (!fork())
		_exit(execl(argv[0], argv[0], "again", (char *)0));
	wait(&status);
	printf("the next program: %x\n", status);
	fflush(stdout);
	close(last);
	return execl(argv[0], argv[0], "again", (char *)0);
}
