/* Children that share their parent's memory until they exec or exit. */
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;
static volatile int shared, handled;

static void handle(int signo) { handled = signo; }
static int other(void *value) { shared += *(int *)value; return 7; }

/* The first call of memory after a vfork: what it reads from this process's memory is still what the program says. */
static void read_after_vfork(void)
{
	char words[] = "as before", copied[sizeof words] = "";
	struct iovec from = {words, sizeof words}, to = {copied, sizeof copied};
	unsigned long nodes = 1;
	if (!vfork())
		_exit(0);
	long ret = process_vm_readv(getpid(), &to, 1, &from, 1, 0);
	printf("process_vm_readv %ld %s\n", ret, copied);
	if (!vfork())
		_exit(0);
	printf("set_mempolicy %ld\n", syscall(SYS_set_mempolicy, 2, &nodes, 64));
	while (wait(0) > 0)
		;
}

int main(void)
{
	char *nowhere[] = {"nowhere", 0}, *echo[] = {"echo", "spawned", 0};
	int status, add = 100;
	pid_t pid;
	setvbuf(stdout, 0, _IOLBF, 4096);
	signal(SIGUSR1, handle);
	printf("no program: %s\n", strerror(posix_spawn(&pid, "/nowhere", 0, 0, nowhere, environ)));
	int error = posix_spawnp(&pid, "echo", 0, 0, echo, environ);
	waitpid(pid, &status, 0);	/* before anything is said: it speaks too */
	printf("a program: %d, its status: %d\n", error, status);
	for (int i = 0; i < 10; i++) {
		pid = vfork();
		if (!pid) {
			shared++;
			_exit(6);
		}
		waitpid(pid, &status, 0);
	}
	printf("shared %d, status %d\n", shared, WEXITSTATUS(status));
	if (!vfork()) {
		execlp("false", "false", (char *)0);
		_exit(9);
	}
	wait(&status);
	printf("status %d\n", WEXITSTATUS(status));
	char *stack = malloc(65536);
	pid = clone(other, stack + 65536, CLONE_VM | SIGCHLD, &add);
	waitpid(pid, &status, 0);
	printf("shared %d, status %d\n", shared, WEXITSTATUS(status));
	read_after_vfork();
	raise(SIGUSR1);
	printf("handled %d\n", handled);
	return 0;
}
