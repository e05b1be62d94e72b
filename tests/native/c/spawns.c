/* Children that share their parent's memory until they exec or exit. */
#define _GNU_SOURCE
#include <pthread.h>
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

static void *send_while_it_borrows(void *ready)
{
	while (!*(volatile int *)ready)
		;
	for (int i = 0; i < 20; i++)
		kill(getpid(), SIGUSR1);
	*(volatile int *)ready = 2;
	return 0;
}

/* The child of a vfork has handlers of its own; another thread of the parent goes on meanwhile, with the parent's. */
static void handle_during_vfork(void)
{
	volatile int ready = 0;
	pthread_t thread;
	handled = 0;
	pthread_create(&thread, 0, send_while_it_borrows, (void *)&ready);
	if (!vfork()) {
		signal(SIGUSR1, SIG_DFL);
		alarm(20);
		ready = 1;
		while (ready < 2)
			;
		_exit(0);
	}
	pthread_join(thread, 0);
	wait(0);
	printf("handled during vfork %d\n", handled);
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
	handle_during_vfork();
	raise(SIGUSR1);
	printf("handled %d\n", handled);
	return 0;
}
