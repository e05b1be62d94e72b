/* What a debugger and strace look at: calls, a signal, a fault that is repaired, children, memory. */
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static int total;
static volatile int signals;
static char text[8] = "none";

static void count(int signo)
{
	signals += signo;
}

/* read(), by a function of the program itself: a debugger needs nothing of the libc to show where it waits. */
static long read_input(void *to, long length)
{
	long got;
	__asm__ volatile("syscall" : "=a"(got) : "a"(0), "D"(0), "S"(to), "d"(length) : "rcx", "r11", "memory");
	return got;
}

static int add(int number)
{
	total += number;
	return total;
}

int main(int argc, char **argv)
{
	int status;
	if (argc > 1) {
		printf("ready\n");
		fflush(stdout);
		return read_input(text, 3) == 3 && argv[1][0] == 'w' ? 4 : 5;
	}
	signal(SIGUSR1, count);
	for (int i = 1; i < 4; i++)
		printf("%d\n", add(i));
	raise(SIGUSR1);
	memset(malloc(1 << 20), 1, 1 << 20);
	poll(0, 0, 1);
	fflush(stdout);
	if (!fork())
		_exit(3);
	wait(&status);
	if (!vfork()) {
		execl("/bin/true", "true", (char *)0);
		_exit(9);
	}
	wait(&status);
	strcpy(text, "end");
	return signals;
}
