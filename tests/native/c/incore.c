/* What mincore() says of a new file that fallocate() or ftruncate() has made longer, that was written, or dropped from the page
 * cache: after mmap, after a read and a write of two pages, after read(2), and by another mapping.
 *
 * incore FILE */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#define PAGE 4096L
#define PAGES 256L

static void tell(const char *when, char *at)
{
	unsigned char vector[PAGES];
	int before = -1;
	mincore(at, PAGES * PAGE, vector);
	printf("  %s:", when);
	for (int i = 0; i < PAGES; i++) {
		if ((vector[i] & 1) != before)
			printf(" %d from %d", vector[i] & 1, i);
		before = vector[i] & 1;
	}
	puts("");
}

static long major_faults(void)
{
	struct rusage usage;
	getrusage(RUSAGE_SELF, &usage);
	return usage.ru_majflt;
}

static void look(const char *how, int fd)
{
	char *at = mmap(0, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), bytes[PAGE];
	printf("%s\n", how);
	madvise(at, PAGES * PAGE, MADV_RANDOM);	/* else a fault reads as many pages as is set for the disk */
	tell("mapped", at);
	long before = major_faults();
	volatile char byte = at[9 * PAGE];
	printf("  a read takes %ld major faults\n", major_faults() - before);
	tell("page 9 is read", at);
	at[100 * PAGE] = byte + 1;
	tell("page 100 is written", at);
	pread(fd, bytes, PAGE, 200 * PAGE);
	tell("page 200 is read by a call", at);
	pwrite(fd, bytes, PAGE, 230 * PAGE);
	tell("page 230 is written by a call", at);
	before = major_faults();
	byte = at[230 * PAGE];
	printf("  a read of it takes %ld\n", major_faults() - before);
	char *other = mmap(0, PAGES * PAGE, PROT_READ, MAP_PRIVATE, fd, 0);
	tell("by another mapping", other);
	munmap(other, PAGES * PAGE);
	munmap(at, PAGES * PAGE);
}

int main(int count, char **words)
{
	static char page[PAGE] = "written";
	int fd;
	for (int how = 0; how < 4 && count > 1; how++) {
		unlink(words[1]);
		fd = open(words[1], O_RDWR | O_CREAT, 0600);
		if (how == 0) {
			if (fallocate(fd, 0, 0, PAGES * PAGE))
				puts("no fallocate");
		} else if (how == 1) {
			ftruncate(fd, PAGES * PAGE);
		} else {
			for (int i = 0; i < PAGES; i++)
				write(fd, page, PAGE);
		}
		posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
		if (how == 3) {
			fsync(fd);
			posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
		}
		look((const char *[]){"fallocate", "ftruncate", "written", "dropped"}[how], fd);
		close(fd);
	}
	unlink(words[1]);
	return 0;
}
