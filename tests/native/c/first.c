/* How the first process of a PID namespace ends: by faults of its own, and not by signals that it sends to itself, nor by those
 * of others but SIGKILL. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
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

static void divides(void)
{
	__asm__ volatile("divl %0" : : "r"(0) : "eax", "edx");
}

static void breakpoint(void)
{
	__asm__ volatile("int3");
}

static void tell(int signo)
{
	_exit(64 + signo);
}

static void handled(void)
{
	signal(SIGSEGV, tell);
	null();
}

static void blocked(void)
{
	sigset_t all;
	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, 0);
	signal(SIGSEGV, tell);
	null();
}

static void ignored(void)
{
	signal(SIGSEGV, SIG_IGN);
	null();
}

static void *in_a_thread(void *nothing)
{
	null();
	return nothing;
}

static void threads(void)
{
	pthread_t thread;
	pthread_create(&thread, 0, in_a_thread, 0);
	pthread_join(thread, 0);
}

static void signals_itself(void)
{
	raise(SIGTERM);
	raise(SIGSEGV);
	kill(getpid(), SIGKILL);
	_exit(7);
}

/* Ends by SIGKILL alone of what its parent sends, who is outside of the namespace. */
static void waits(void)
{
	for (;;)
		pause();
}

static const struct { const char *name; void (*ends)(void); } kinds[] = {
	{"null", null}, {"behind a file", behind_a_file}, {"illegal", illegal}, {"no stack", no_stack}, {"divides", divides},
	{"breakpoint", breakpoint}, {"handled", handled}, {"blocked", blocked}, {"ignored", ignored}, {"threads", threads},
	{"signals itself", signals_itself}, {"waits", waits},
};

static int ended(pid_t pid)
{
	int status;
	if (pid < 0 || waitpid(pid, &status, 0) != pid) {
		perror("no child");
		_exit(2);
	}
	return status & ~0x80;
}

int main(void)
{
	struct rlimit none = {0, 0};
	setrlimit(RLIMIT_CORE, &none);
	for (unsigned i = 0; i < sizeof kinds / sizeof *kinds; i++) {
		pid_t outer = fork();
		if (!outer) {
			if (unshare(CLONE_NEWPID) && unshare(CLONE_NEWUSER | CLONE_NEWPID)) {
				perror("unshare");
				_exit(1);
			}
			pid_t first = fork();
			if (!first) {
				kinds[i].ends();
				_exit(getpid());
			}
			if (kinds[i].ends == waits) {
				kill(first, SIGTERM);
				kill(first, SIGKILL);
			}
			printf("%s: %x\n", kinds[i].name, ended(first));
			fflush(stdout);
			_exit(0);
		}
		if (ended(outer))
			return 1;
	}
	return 0;
}
