/*
 * A call that kerneld may never see: `bypass libc 467` makes it by libc's syscall(), `bypass raw 462` by the instruction.
 * With more words it becomes the program that they name, without LD_PRELOAD where the first of them is `clean`.
 */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	long ret = -1, nr = argc > 2 ? atol(argv[2]) : 0;

	if (argc < 3)
		return 2;
	if (strcmp(argv[1], "exec") == 0 || strcmp(argv[1], "clean") == 0) {
		if (strcmp(argv[1], "clean") == 0)
			unsetenv("LD_PRELOAD");
		execv(argv[2], argv + 2);
		return 1;
	}
	if (strcmp(argv[1], "libc") == 0)
		return syscall(nr, -1L, -1L, -1L, -1L, -1L) == -1 ? 0 : 1;
	/* Wrong arguments for whatever the host has there. */
	register long r10 __asm__("r10") = -1, r8 __asm__("r8") = -1;
	__asm__ volatile("syscall"
			 : "=a"(ret)
			 : "a"(nr), "D"(-1L), "S"(-1L), "d"(-1L), "r"(r10), "r"(r8)
			 : "rcx", "r11", "memory");
	return ret < 0 ? 0 : 1;
}
