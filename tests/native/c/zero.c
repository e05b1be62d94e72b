/* Mappings of /dev/zero: private ones are anonymous memory with a name, shared ones are memory that a child shares. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096UL

static char *base;

static const char *outcome(void *at)
{
	return at == MAP_FAILED ? strerror(errno) : "done";
}

/* The lines of maps from `base` on, without what differs from one host to another. */
static void show(const char *when)
{
	char line[512], rights[8], name[256];
	unsigned long start, end, offset, inode;
	unsigned major, minor;
	FILE *maps = fopen("/proc/self/maps", "r");
	printf("%s:", when);
	while (fgets(line, sizeof line, maps)) {
		name[0] = 0;
		sscanf(line, "%lx-%lx %7s %lx %x:%x %lu %255[^\n]", &start, &end, rights, &offset, &major, &minor, &inode, name);
		if (start >= (unsigned long)base && end <= (unsigned long)base + 16 * PAGE)
			printf(" [%lu-%lu %s %lx %d %s]", (start - (unsigned long)base) / PAGE, (end - (unsigned long)base) / PAGE, rights, offset, inode != 0, name);
	}
	printf("\n");
	fclose(maps);
}

int main(void)
{
	int fd = open("/dev/zero", O_RDWR), readonly = open("/dev/zero", O_RDONLY), status;
	base = mmap(0, 16 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	munmap(base, 16 * PAGE);
	printf("private: %s\n", outcome(mmap(base, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, fd, 8 * PAGE)));
	printf("another offset: %s\n", outcome(mmap(base + 5 * PAGE, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, fd, 0)));
	printf("anonymous: %s\n", outcome(mmap(base + 6 * PAGE, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0)));
	printf("shared: %s\n", outcome(mmap(base + 8 * PAGE, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, PAGE)));
	show("mapped");
	printf("to be read alone, shared and written: %s", outcome(mmap(0, PAGE, PROT_WRITE, MAP_SHARED, readonly, 0)));
	printf("; private: %s", outcome(mmap(base + 11 * PAGE, PAGE, PROT_WRITE, MAP_PRIVATE | MAP_FIXED, readonly, 0)));
	printf("; shared: %s", outcome(mmap(base + 12 * PAGE, PAGE, PROT_READ, MAP_SHARED | MAP_FIXED, readonly, 0)));
	printf("; at the end of all offsets: %s\n", outcome(mmap(base + 13 * PAGE, PAGE, PROT_READ, MAP_PRIVATE | MAP_FIXED, fd, (off_t)0x7ffffffffffff000)));
	printf("wiped at a fork: %s\n", madvise(base, PAGE, MADV_WIPEONFORK) ? strerror(errno) : "done");
	base[0] = base[PAGE] = base[8 * PAGE] = 1;
	fflush(stdout);
	if (!fork()) {
		base[0]++;
		base[8 * PAGE]++;
		_exit(base[2 * PAGE]);
	}
	wait(&status);
	printf("after the child: %d %d, status %x\n", base[0], base[8 * PAGE], status);
	mprotect(base + PAGE, PAGE, PROT_READ);
	show("protected");
	mprotect(base + PAGE, PAGE, PROT_READ | PROT_WRITE);
	show("and back");
	madvise(base, 2 * PAGE, MADV_DONTNEED);
	printf("dropped: %d %d\n", base[0], base[PAGE]);
	printf("moved: %s\n", outcome(mremap(base + PAGE, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, base + 14 * PAGE)));
	show("moved");
	printf("read through: %zd %d\n", read(fd, base, PAGE), base[5]);
	return 0;
}
