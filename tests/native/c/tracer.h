/* What the tracers of these tests share: a child that is traced, and words for its stops. */
#pragma once
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/select.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <elf.h>
#include <time.h>
#include <unistd.h>

static volatile long word = 7;
static volatile int handled;
static int ends[2], back[2];

__attribute__((unused)) static void handler(int signo)
{
	handled += signo;
}

static const char *name_of_status(int status)
{
	static char text[64];
	if (WIFEXITED(status))
		snprintf(text, sizeof text, "exited %d", WEXITSTATUS(status));
	else if (WIFSIGNALED(status))
		snprintf(text, sizeof text, "killed by %d", WTERMSIG(status));
	else if (WIFCONTINUED(status))
		snprintf(text, sizeof text, "continued");
	else
		snprintf(text, sizeof text, "stopped by %#x, event %d", WSTOPSIG(status), status >> 16);
	return text;
}

static int wait_for(pid_t pid)
{
	int status = 0;
	if (waitpid(pid, &status, __WALL) != pid)
		perror("waitpid");
	return status;
}

static void expect(const char *what, pid_t pid)
{
	int status = wait_for(pid);
	printf("%s: %s\n", what, name_of_status(status));
	fflush(stdout);
}

static struct user_regs_struct registers_of(pid_t pid)
{
	struct user_regs_struct regs = {0};
	if (ptrace(PTRACE_GETREGS, pid, 0, &regs))
		perror("PTRACE_GETREGS");
	return regs;
}

__attribute__((unused)) static const char *refusal(long ret)
{
	return ret == -1 && errno ? strerrorname_np(errno) : "0";
}

/* Start a child that is traced and has stopped itself. */
static pid_t traced(void (*body)(void), long options)
{
	fflush(stdout);
	pid_t pid = fork();
	if (!pid) {
		ptrace(PTRACE_TRACEME, 0, 0, 0);
		raise(SIGSTOP);
		body();
		_exit(handled + 1);
	}
	int status = wait_for(pid);
	if (!WIFSTOPPED(status) || WSTOPSIG(status) != SIGSTOP)
		printf("no SIGSTOP: %s\n", name_of_status(status));
	if (ptrace(PTRACE_SETOPTIONS, pid, 0, options))
		perror("PTRACE_SETOPTIONS");
	return pid;
}

__attribute__((unused)) static void pauses(void)
{
	for (;;)
		pause();
}

/* Have the test end if a tracer or a tracee waits for ever. */
static int begin(int argc, char **argv)
{
	alarm(argc > 1 ? atoi(argv[1]) : 0);
	return pipe(ends) || pipe(back);
}
