/* Each call that writes to a file that is mapped: what it returns, where the position is, and what the mapping shows. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/uio.h>
#include <unistd.h>

#define P 4096
#define BYTES (64 * P)

static char *shared;
static int fd;

static void show(const char *call, ssize_t ret)
{
	unsigned long sum = 0;
	off_t size = lseek(fd, 0, SEEK_CUR), end;
	int error = ret < 0 ? errno : 0;
	end = lseek(fd, 0, SEEK_END);
	lseek(fd, size, SEEK_SET);
	for (off_t i = 0; i < end && i < BYTES; i++)
		sum = sum * 31 + (unsigned char)shared[i];
	printf("%s: %zd, error %d, position %ld, size %ld, sum %lx\n", call, ret, error, (long)size, (long)end, sum);
	shared[P + 7]++;	/* the page is dirty before the next call */
}

int main(void)
{
	char name[] = "file_calls.XXXXXX", other[] = "file_calls.XXXXXX", *big = malloc(40 * P);
	int source = mkstemp(other), ends[2];
	loff_t from = 3, to = 5 * P + 1;
	struct iovec two[2] = {{"first ", 6}, {big, 20 * P}};
	fd = mkstemp(name);
	memset(big, 'b', 40 * P);
	ftruncate(fd, 8 * P);
	shared = mmap(0, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	for (int i = 0; i < 40 * P; i++)
		big[i] = i * 7 / 5;
	show("write", write(fd, big, 100));
	show("big write", write(fd, big, 30 * P + 5));
	show("pwrite", pwrite(fd, "middle", 6, 2 * P - 3));
	show("pwrite nowhere", pwrite(fd, "x", 1, -1));
	show("writev", writev(fd, two, 2));
	show("pwritev", pwritev(fd, two, 2, 33));
	show("pwritev2", pwritev2(fd, two, 1, 77, 0));
	show("pwritev2 here", pwritev2(fd, two, 1, -1, 0));
	show("no iovecs", writev(fd, two, 2000));
	write(source, big, 40 * P);
	lseek(source, 11, SEEK_SET);
	lseek(fd, 9, SEEK_SET);
	show("sendfile", sendfile(fd, source, 0, 2 * P));
	show("sendfile at", sendfile(fd, source, &from, 18 * P));
	show("copy_file_range", copy_file_range(source, &from, fd, &to, 3 * P, 0));
	printf("%ld %ld, %ld\n", (long)from, (long)to, (long)lseek(source, 0, SEEK_CUR));
	show("copy_file_range to the end", copy_file_range(source, 0, fd, 0, 100 * P, 0));
	pipe(ends);
	write(ends[1], "through a pipe", 14);
	to = 3;
	show("splice", splice(ends[0], 0, fd, &to, 100, 0));
	char *half = mmap(0, 2 * P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memset(half, 'h', P);
	munmap(half + P, P);
	show("no buffer", write(fd, half + P, 5));
	show("nothing", write(fd, big, 0));
	int appending = open(name, O_WRONLY | O_APPEND), reading = open(name, O_RDONLY);
	show("append", write(appending, "appended", 8));
	show("append at", pwrite(appending, "at the end", 10, 5));
	show("read only", write(reading, "x", 1));
	show("truncate", ftruncate(fd, 3 * P + 9));
	show("longer", ftruncate(fd, 5 * P));
	show("to less than nothing", ftruncate(fd, -1));
	show("punch", fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 100, P));
	struct rlimit limit = {4 * P, RLIM_INFINITY};
	setrlimit(RLIMIT_FSIZE, &limit);
	signal(SIGXFSZ, SIG_IGN);
	show("up to the limit", pwrite(fd, big, 2 * P, 3 * P));
	show("beyond the limit", pwrite(fd, big, 2 * P, 5 * P));
	unlink(name);
	unlink(other);
	return 0;
}
