/* What a program inside kerneld pays, and the same outside: calls, refills, and whole programs.
 *
 * Reads commands from stdin, one a line: a name and how often. Answers each with the nanoseconds that all of them took, on
 * one line. The arguments are a program to be run by "run", its output thrown away.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "timing.h"

#define PAGE 4096UL
#define WINDOW 16

extern char **environ;
static char **program;
static int memory_fd;
static char *window;

/* A call that kerneld has no part in, and that takes the host no time: the buffer has no room. */
static uint64_t call(long times)
{
	char byte;
	uint64_t started = now();

	for (long i = 0; i < times; i++)
		syscall(SYS_getcwd, &byte, 0);
	return now() - started;
}

/* Pages are written, `step` pages apart; a fork then takes the right to write from all, so that they leave the TLB. What is
 * timed is the next load of each. */
static uint64_t refill_by(long times, long step)
{
	volatile char *p = mmap(NULL, times * step * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint64_t started;
	pid_t pid;

	check(p == MAP_FAILED, "mmap");
	madvise((void *)p, times * step * PAGE, MADV_NOHUGEPAGE);
	for (long i = 0; i < times; i++)
		p[i * step * PAGE] = 1;
	pid = fork();
	if (pid == 0)
		_exit(0);
	waitpid(pid, NULL, 0);
	started = now();
	for (long i = 0; i < times; i++)
		(void)p[i * step * PAGE];
	started = now() - started;
	munmap((void *)p, times * step * PAGE);
	return started;
}

/* One page of each window in which kerneld looks for neighbours: each refill brings one page. */
static uint64_t refill(long times)
{
	return refill_by(times, WINDOW);
}

static uint64_t refill_run(long times)
{
	return refill_by(times, 1);
}

static void map_page(int signo, siginfo_t *info, void *context)
{
	uint64_t at = (uint64_t)info->si_addr & -PAGE;

	(void)signo;
	(void)context;
	mmap((void *)at, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, memory_fd, at - (uint64_t)window);
}

/* The least that a fault costs which a program handles itself: a handler of SIGSEGV that maps the page of a memory file. */
static uint64_t handler(long times)
{
	struct sigaction action = {.sa_sigaction = map_page, .sa_flags = SA_SIGINFO}, before;
	uint64_t started;

	memory_fd = memfd_create("pages", 0);
	check(memory_fd < 0 || ftruncate(memory_fd, times * PAGE) < 0, "memfd_create");
	window = mmap(NULL, times * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	check(window == MAP_FAILED, "mmap");
	/* The file's memory is there before, as the frames are. */
	for (long i = 0; i < times; i++)
		check(pwrite(memory_fd, "x", 1, i * PAGE) != 1, "pwrite");
	sigaction(SIGSEGV, &action, &before);
	started = now();
	for (long i = 0; i < times; i++)
		(void)((volatile char *)window)[i * PAGE];
	started = now() - started;
	sigaction(SIGSEGV, &before, NULL);
	munmap(window, times * PAGE);
	close(memory_fd);
	return started;
}

static uint64_t run(long times)
{
	posix_spawn_file_actions_t actions;
	uint64_t started;

	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0);
	started = now();
	for (long i = 0; i < times; i++) {
		pid_t pid;
		int status;

		check(posix_spawnp(&pid, program[0], &actions, NULL, program, environ), "posix_spawn");
		check(waitpid(pid, &status, 0) != pid || status, program[0]);
	}
	started = now() - started;
	posix_spawn_file_actions_destroy(&actions);
	return started;
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		uint64_t (*measure)(long times);
	} commands[] = {{"call", call}, {"refill", refill}, {"run_of", refill_run}, {"handler", handler}, {"run", run}};
	char line[256], name[32];
	long times;

	(void)argc;
	program = argv + 1;
	while (fgets(line, sizeof(line), stdin)) {
		if (sscanf(line, "%31s %ld", name, &times) != 2)
			return 1;
		for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
			if (!strcmp(name, commands[i].name)) {
				printf("%llu\n", (unsigned long long)commands[i].measure(times));
				fflush(stdout);
			}
	}
	return 0;
}
