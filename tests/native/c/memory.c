/* The memory calls, and the errnos that they give. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/uio.h>
#include <unistd.h>

#define P 4096L

static void say(const char *what, long result) { printf("%s: %ld %s\n", what, result, result < 0 ? strerror(errno) : ""); }

int main(void)
{
	unsigned char vector[8] = {0};
	char *p = mmap(0, 8 * P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *q;
	struct rlimit limit = {16 * P, 16 * P};
	char byte = 1, copy = 0;
	memset(p, 7, 8 * P);
	say("mprotect", mprotect(p + P, P, PROT_READ));
	say("mprotect unaligned", mprotect(p + 1, P, PROT_READ));
	say("madvise", madvise(p + 2 * P, P, MADV_DONTNEED));
	printf("after it: %d %d\n", p[2 * P], p[3 * P]);
	say("mincore", mincore(p, 8 * P, vector));
	say("munmap", munmap(p + 4 * P, P));
	say("mincore over a hole", mincore(p, 8 * P, vector));
	q = mremap(p + 5 * P, 3 * P, 16 * P, MREMAP_MAYMOVE);
	printf("moved: %d %d\n", q[0], q[3 * P]);
	say("mlock", mlock(q, P));
	say("setrlimit", setrlimit(RLIMIT_MEMLOCK, &limit));
	say("munlock", munlock(q, P));
	say("read to memory that is not there", read(0, (void *)P, 1));
	say("write from memory that is not there", write(1, (void *)P, 1));
	struct iovec here = {&copy, 1}, there = {&byte, 1};
	say("process_vm_readv", process_vm_readv(getpid(), &here, 1, &there, 1, 0));
	printf("read: %d\n", copy);
	say("mmap of nothing", (long)mmap(0, 0, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	say("mmap of no file", (long)mmap(0, P, PROT_READ, MAP_PRIVATE, 999, 0));
	say("brk", sbrk(P) != sbrk(0));
	FILE *file = tmpfile();
	fwrite(p, 1, P, file);
	fflush(file);
	q = mmap(0, 2 * P, PROT_READ | PROT_WRITE, MAP_SHARED, fileno(file), 0);
	q[1] = 'k';
	say("msync", msync(q, P, MS_SYNC));
	pread(fileno(file), &copy, 1, 1);
	printf("in the file: %c\n", copy);
	return 0;
}
