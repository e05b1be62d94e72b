/* How the first process of a PID namespace ends: by faults of its own, and not by signals that it sends to itself. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static void null(void)
{
	*(volatile int *)8 = 1;
}

static void behind_a_file(void)
{
	*(volatile char *)mmap(0, 4096, PROT_READ, MAP_SHARED, open("/dev/shm", O_TMPFILE | O_RDWR, 0600), 0);
}

static void illegal(void)
{
	__builtin_trap();
}

static void no_stack(void)
{
	struct sigaction action = {.sa_handler = (void (*)(int))null, .sa_flags = SA_ONSTACK};
	stack_t stack = {.ss_sp = (void *)0x10000, .ss_size = 1 << 16};
	sigaltstack(&stack, 0);
	sigaction(SIGUSR1, &action, 0);
	raise(SIGUSR1);
}

static void signals_itself(void)
{
	raise(SIGTERM);
	raise(SIGSEGV);
	kill(getpid(), SIGKILL);
	_exit(7);
}

int main(void)
{
	static const struct { const char *name; void (*ends)(void); } kinds[] = {
		{"null", null}, {"behind a file", behind_a_file}, {"illegal", illegal}, {"no stack", no_stack},
		{"signals itself", signals_itself},
	};
	struct rlimit none = {0, 0};
	setrlimit(RLIMIT_CORE, &none);
	for (unsigned i = 0; i < sizeof kinds / sizeof *kinds; i++) {
		int status;
		pid_t outer = fork();
		if (!outer) {
			if (unshare(CLONE_NEWPID) && unshare(CLONE_NEWUSER | CLONE_NEWPID)) {
				puts("this host makes no PID namespaces");
				fflush(stdout);
				_exit(1);
			}
			pid_t first = fork();
			if (!first) {
				kinds[i].ends();
				_exit(getpid());
			}
			waitpid(first, &status, 0);
			printf("%s: %x\n", kinds[i].name, status & ~0x80);
			fflush(stdout);
			_exit(0);
		}
		waitpid(outer, &status, 0);
	}
	return 0;
}
