/* vmsplice(): what a pipe takes and gives, how many pages it has room for, and each error. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#define PAGE 4096L
#define MOST 64

static char *memory;

static void tell(const char *what, long ret)
{
	printf("%s: %ld %s\n", what, ret, ret < 0 ? strerrorname_np(errno) : "");
}

static void check(int fd, const char *expected, long length)
{
	char got[PAGE];
	for (long done = 0; done < length;) {
		long ret = read(fd, got, length - done < PAGE ? length - done : PAGE);
		if (ret <= 0 || memcmp(got, expected + done, ret)) {
			printf("wrong after %ld\n", done);
			return;
		}
		done += ret;
	}
	puts("the same");
}

static void *reader(void *fd)
{
	static char got[4 * PAGE];
	usleep(50000);
	read(*(int *)fd, got, 4 * PAGE);
	return 0;
}

static void give(int *ends)
{
	struct iovec pieces[MOST] = {{memory + 100, 3 * PAGE}, {memory, 0}, {memory + 7 * PAGE, 10}};
	tell("three pieces", vmsplice(ends[1], pieces, 3, 0));
	check(ends[0], memory + 100, 3 * PAGE);
	check(ends[0], memory + 7 * PAGE, 10);
	pieces[0] = (struct iovec){memory, MOST * PAGE};
	tell("more than there is room for", vmsplice(ends[1], pieces, 1, SPLICE_F_GIFT));
	tell("a full pipe", vmsplice(ends[1], pieces, 1, SPLICE_F_NONBLOCK));
	pthread_t thread;
	pthread_create(&thread, 0, reader, ends);
	tell("a full pipe that is read", vmsplice(ends[1], pieces, 1, 0));
	pthread_join(thread, 0);
	check(ends[0], memory + 4 * PAGE, PAGE);
	while (read(ends[0], memory, MOST * PAGE) == MOST * PAGE)
		;
}

static void take(int *ends)
{
	struct iovec pieces[2] = {{memory + 5, 4}, {memory + PAGE - 2, 100}};
	write(ends[1], "0123456789", 10);
	memset(memory, '.', 2 * PAGE);
	tell("two pieces are taken", vmsplice(ends[0], pieces, 2, 0));
	printf("%.6s %.8s\n", memory + 4, memory + PAGE - 3);
	tell("an empty pipe", vmsplice(ends[0], pieces, 2, SPLICE_F_NONBLOCK));
}

static void errors(int *ends)
{
	char *bad = mmap(0, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct iovec pieces[2] = {{bad, 10}, {memory, 10}}, half[2] = {{memory, 10}, {bad, 10}}, long_one = {memory, -1};
	tell("a bad piece", vmsplice(ends[1], pieces, 2, 0));
	tell("a bad piece behind a good one", vmsplice(ends[1], half, 2, 0));
	check(ends[0], memory, 10);
	tell("a bad vector", vmsplice(ends[1], (struct iovec *)bad, 1, 0));
	tell("a negative length", vmsplice(ends[1], &long_one, 1, 0));
	tell("too many pieces", vmsplice(ends[1], pieces, 1025, 0));
	tell("no piece", vmsplice(ends[1], pieces, 0, 0));
	tell("unknown flags", vmsplice(ends[1], half, 1, 0x100));
	tell("no pipe", vmsplice(open("/dev/null", O_RDWR), half, 1, 0));
	tell("no descriptor", vmsplice(-1, half, 1, 0));
	signal(SIGPIPE, SIG_IGN);
	close(ends[0]);
	tell("no reader", vmsplice(ends[1], half, 1, 0));
}

int main(void)
{
	int ends[2];
	memory = mmap(0, MOST * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (long i = 0; i < MOST * PAGE; i++)
		memory[i] = i * 7 + i / PAGE;
	pipe(ends);
	give(ends);
	take(ends);
	errors(ends);
	return 0;
}
