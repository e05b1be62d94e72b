/* Recursion to the stack's limit and out again by the alternate stack, twice, and in a thread with a guard page. */
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

#define LIMIT (4UL << 20)

static sigjmp_buf out;
static char *top, *volatile lowest;
static char stack[65536];

static void leave(int signo, siginfo_t *info, void *context)
{
	(void)context;
	char here;
	if (signo != SIGSEGV || &here < stack || &here >= stack + sizeof stack)
		_exit(9);
	lowest = info->si_addr;
	siglongjmp(out, 1);
}

static int recurse(int n)
{
	volatile char frame[1000];
	frame[0] = n;
	return recurse(n + 1) + frame[0];
}

static void descend(const char *what, unsigned long limit)
{
	char here;
	stack_t other = {.ss_sp = stack, .ss_size = sizeof stack}, old;
	sigaltstack(&other, 0);
	top = &here;
	if (!sigsetjmp(out, 1))
		recurse(0);
	unsigned long deep = top - lowest;
	sigaltstack(0, &old);
	printf("%s: %s, on the other stack now: %d\n", what, deep > limit - (256 << 10) && deep < limit + (64 << 10) ? "to the limit" : "not to the limit",
	       old.ss_flags & SS_ONSTACK);
	fflush(stdout);
}

static void *thread(void *unused)
{
	descend("thread", 1UL << 20);
	return unused;
}

int main(int argc, char **argv)
{
	struct rlimit limit = {LIMIT, LIMIT};
	struct sigaction action = {.sa_sigaction = leave, .sa_flags = SA_ONSTACK | SA_SIGINFO};
	pthread_attr_t attr;
	pthread_t other;
	if (argc == 1) {
		setrlimit(RLIMIT_STACK, &limit);
		execl(argv[0], argv[0], "again", (char *)0);
		return 1;
	}
	sigaction(SIGSEGV, &action, 0);
	descend("first", LIMIT);
	descend("second", LIMIT);
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 1UL << 20);
	pthread_create(&other, &attr, thread, 0);
	pthread_join(other, 0);
	action.sa_flags = SA_SIGINFO;
	sigaction(SIGSEGV, &action, 0);
	printf("%d\n", recurse(0));	/* no stack for the handler: SIGSEGV ends the program */
	return 0;
}
