/* Buffers of calls: larger than the RAM, larger than what is read, with a bad end, read-only; locks of a thread that dies. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#define P 4096L
#define BIG (4L << 20)

static char *map(long bytes) { return mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); }

static void say(const char *name, long ret) { printf("%s: %ld %s\n", name, ret, ret < 0 ? strerrorname_np(errno) : ""); }

static int resident(char *at, long pages)
{
	unsigned char in[512];
	int sum = 0;
	mincore(at, pages * P, in);
	for (long i = 0; i < pages; i++)
		sum += in[i] & 1;
	return sum;
}

static unsigned long sum_of(const char *at, long bytes)
{
	unsigned long sum = 0;
	for (long i = 0; i < bytes; i += 509)
		sum = sum * 31 + (unsigned char)at[i];
	return sum;
}

static void big(void)
{
	char name[] = "buffers.XXXXXX", *all = map(BIG), *back = map(BIG);
	int fd = mkstemp(name);
	for (long i = 0; i < BIG; i += 8)
		*(long *)(all + i) = i * 77;
	say("big write", write(fd, all, BIG));
	say("big read", pread(fd, back, BIG, 0));
	printf("the same: %d\n", sum_of(all, BIG) == sum_of(back, BIG));
	struct iovec two[2] = {{back, BIG / 2}, {all, BIG / 2}};
	lseek(fd, 0, SEEK_SET);
	say("big readv", readv(fd, two, 2));
	printf("%lx %lx\n", sum_of(all, BIG / 2), sum_of(back, BIG));
	say("big writev", pwritev(fd, two, 2, 100));
	munmap(all, BIG), munmap(back, BIG);
	close(fd);
	unlink(name);
}

static void as_much_as_is_read(void)
{
	int ends[2], file = open("/etc/passwd", O_RDONLY);
	char *buffer = map(256 * P);
	pipe(ends);
	write(ends[1], "ten bytes.", 10);
	say("read", read(ends[0], buffer + 5 * P - 3, 100 * P));
	printf("pages %d\n", resident(buffer, 256));
	say("file", pread(file, buffer + 100 * P, 100 * P, 0) > 0);
	printf("more pages %d\n", resident(buffer, 256) <= 2 + 16);
	readlink("/proc/self/exe", buffer + 250 * P, 5 * P);
	printf("and one %d\n", resident(buffer + 250 * P, 6));
}

static void bad(void)
{
	int ends[2], pair[2], file = open("/proc/self/exe", O_RDONLY);
	char *buffer = map(3 * P), *fixed = mmap(0, P, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct stat status;
	munmap(buffer + P, P);
	pipe(ends);
	socketpair(AF_UNIX, SOCK_DGRAM, 0, pair);
	say("read to nowhere", read(file, buffer + P, 10));
	say("read half", read(file, buffer + P - 5, 10));
	say("position", lseek(file, 0, SEEK_CUR));
	say("write half", write(ends[1], buffer + P - 5, 10));
	say("write nowhere", write(ends[1], buffer + P, 10));
	say("send half", send(pair[0], buffer + P - 5, 10, 0));
	say("send beyond", send(pair[0], (char *)-5, 10, 0));
	say("read into what is read-only", pread(file, fixed, 10, 0));
	say("stat of nowhere", stat(buffer + P, &status));
	say("stat to nowhere", stat("/", (struct stat *)(buffer + P)));
	say("stat of nothing", stat("/nothing", (struct stat *)(buffer + P)));
	say("a long name", open(memset(fixed = map(3 * P), 'n', 2 * P), O_RDONLY));
	say("pipe to nowhere", pipe((int *)(buffer + P)));
	say("poll nowhere", poll((struct pollfd *)(buffer + P), 1, 0));
	say("many iovecs", readv(file, (struct iovec *)buffer, 2000));
	struct iovec iovecs[2] = {{buffer, 10}, {buffer + P, 10}}, negative = {buffer, -1};
	say("one good of two", writev(ends[1], iovecs, 2));
	say("a negative length", readv(file, &negative, 1));
	const struct winsize size = {1, 2, 3, 4};
	say("no terminal", ioctl(ends[0], TIOCSWINSZ, &size));
	say("a bad descriptor first", read(-1, buffer + P, 10));
}

static pthread_mutex_t *shared;

static void *dies(void *unused)
{
	pthread_mutex_lock(shared);
	return unused;
}

static void robust(void)
{
	pthread_mutexattr_t attr;
	pthread_t thread;
	shared = mmap(0, P, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pthread_mutexattr_init(&attr);
	pthread_mutexattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
	pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST);
	pthread_mutex_init(shared, &attr);
	pthread_create(&thread, 0, dies, 0);
	pthread_join(thread, 0);
	say("its owner has died", pthread_mutex_lock(shared) == EOWNERDEAD);
	pthread_mutex_consistent(shared);
	pthread_mutex_unlock(shared);
	if (!fork()) {
		dies(0);
		_exit(0);
	}
	wait(0);
	say("and a process", pthread_mutex_lock(shared) == EOWNERDEAD);
}

int main(void)
{
	big();
	as_much_as_is_read();
	bad();
	robust();
	return 0;
}
