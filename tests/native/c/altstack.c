/* The alternate stack: what sigaltstack() tells, what a handler's frame has, and what is taken up from it, for all flags. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#ifndef SS_AUTODISARM
#define SS_AUTODISARM (1U << 31)
#endif

static char room[1 << 16] __attribute__((aligned(4096))), other[1 << 16];

static void tell(const char *what, const stack_t *stack)
{
	const char *place = stack->ss_sp == room ? "room" : stack->ss_sp == other ? "other" : stack->ss_sp ? "?" : "none";
	printf("%s: %s %lu %x\n", what, place, (unsigned long)stack->ss_size, (unsigned)stack->ss_flags);
}

static void ask(const char *what)
{
	stack_t stack = {.ss_flags = 0x55};
	sigaltstack(0, &stack);
	tell(what, &stack);
}

static void handler(int signo, siginfo_t *info, void *frame)
{
	stack_t new = {.ss_sp = other, .ss_size = sizeof other}, *kept = &((ucontext_t *)frame)->uc_stack;
	tell("  in its frame", kept);
	ask("  in the handler");
	printf("  another: %d\n", sigaltstack(&new, 0) ? errno : 0);
	ask("  then");
	if (info->si_code == SI_QUEUE) {
		kept->ss_sp = other;
		kept->ss_size = 5;
	}
	(void)signo;
}

static void take_signals(const char *what, int flags)
{
	struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | flags};
	sigaction(SIGUSR1, &action, 0);
	puts(what);
	ask(" before");
	raise(SIGUSR1);
	ask(" behind");
	pthread_sigqueue(pthread_self(), SIGUSR1, (union sigval){0});
	ask(" behind a frame with a stack that is too small");
}

static void nothing(int signo)
{
	printf(" handled %d\n", signo);
	fflush(stdout);
}

/* Where the frame cannot be written there is a SIGSEGV, which has a handler on the other stack; or none, which ends a child. */
static void lose_it(void)
{
	stack_t stack = {.ss_sp = room, .ss_size = sizeof room};
	struct sigaction on_it = {.sa_handler = nothing, .sa_flags = SA_ONSTACK}, beside = {.sa_handler = nothing};
	int status;
	sigaltstack(&stack, 0);
	sigaction(SIGUSR1, &on_it, 0);
	sigaction(SIGSEGV, &beside, 0);
	mprotect(room, sizeof room, PROT_READ);
	puts("a stack that cannot be written");
	fflush(stdout);
	raise(SIGUSR1);
	if (!fork()) {
		sigaction(SIGSEGV, &on_it, 0);
		raise(SIGUSR1);
		_exit(1);
	}
	wait(&status);
	printf(" on it too: %x\n", status & 0x7f);
	mprotect(room, sizeof room, PROT_READ | PROT_WRITE);
}

static void *thread(void *unused)
{
	take_signals("in a thread", SA_ONSTACK);
	return unused;
}

int main(void)
{
	static const unsigned flags[] = {0, SS_ONSTACK, SS_AUTODISARM, SS_AUTODISARM | SS_ONSTACK, SS_DISABLE, 77};
	pthread_t other_thread;
	take_signals("at first", SA_ONSTACK);
	for (unsigned i = 0; i < 2 * sizeof flags / sizeof *flags; i++) {
		stack_t stack = {.ss_sp = room, .ss_size = sizeof room, .ss_flags = flags[i / 2]};
		printf("flags %x: %d\n", flags[i / 2], sigaltstack(&stack, 0) ? errno : 0);
		take_signals(i % 2 ? "on it" : "not on it", i % 2 ? SA_ONSTACK : 0);
	}
	lose_it();
	pthread_create(&other_thread, 0, thread, 0);
	pthread_join(other_thread, 0);
	return 0;
}
