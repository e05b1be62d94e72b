/* One process writes a file through its mapping while others write() to it: first in turns, then all at once. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define P 4096
#define PAGES 4
#define WORDS (PAGES * P / 8)
#define CALLERS 2

static long *words;
static int fd;

static void in_turns(void)
{
	int there[2], back[2];
	char byte = 0;
	long value;
	if (pipe(there) || pipe(back))
		exit(1);
	if (!fork()) {
		for (int i = 0; i < 100; i++) {
			read(there[0], &byte, 1);
			value = 1000 + i;
			pwrite(fd, &value, 8, 8 * (2 * i + 1));
			pread(fd, &value, 8, 8 * (2 * i));
			if (value != i)
				_exit(1);
			write(back[1], &byte, 1);
		}
		_exit(0);
	}
	int bad = 0;
	for (int i = 0; i < 100; i++) {
		words[2 * i] = i;
		write(there[1], &byte, 1);
		read(back[0], &byte, 1);
		bad += words[2 * i + 1] != 1000 + i;
	}
	int status;
	wait(&status);
	printf("in turns: %d wrong, child %d\n", bad, status);
}

/* Word i is the mapper's where i % (CALLERS + 1) == 0, and else the i % (CALLERS + 1)-th caller's. */
static void at_once(void)
{
	memset(words, 0, PAGES * P);
	for (long caller = 1; caller <= CALLERS; caller++)
		if (!fork()) {
			for (long i = caller; i < WORDS; i += CALLERS + 1) {
				long value = i * 10 + caller;
				if (pwrite(fd, &value, 8, 8 * i) != 8)
					_exit(1);
			}
			_exit(0);
		}
	for (int ended = 0, status; ended < CALLERS;) {
		for (long i = 0; i < WORDS; i += CALLERS + 1)
			((volatile long *)words)[i] = i * 10;
		if (waitpid(-1, &status, WNOHANG) > 0) {
			ended++;
			if (status)
				printf("caller %d\n", status);
		}
	}
	long read_back[WORDS];
	int bad = 0, bad_read = 0;
	pread(fd, read_back, sizeof read_back, 0);
	for (long i = 0; i < WORDS; i++) {
		bad += words[i] != i * 10 + i % (CALLERS + 1);
		bad_read += read_back[i] != i * 10 + i % (CALLERS + 1);
	}
	printf("at once: %d wrong in memory, %d by read\n", bad, bad_read);
}

int main(void)
{
	char name[] = "writers.XXXXXX", zero[PAGES * P] = {0};
	fd = mkstemp(name);
	if (write(fd, zero, sizeof zero) != sizeof zero)
		return 1;
	words = mmap(0, sizeof zero, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	setvbuf(stdout, 0, _IONBF, 0);
	in_turns();
	at_once();
	unlink(name);
	return 0;
}
