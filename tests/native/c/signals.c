/* Handlers that repair, interrupt, leave an overflowing stack; masks; default actions; the status of a signal. */
#define _GNU_SOURCE
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

static char *page;
static int repairs;
static volatile int alarms;
static sigjmp_buf out;

static void repair(int signo, siginfo_t *info, void *context)
{
	(void)signo, (void)context;
	repairs++;
	if ((char *)info->si_addr != page + 5 || info->si_code != SEGV_ACCERR)
		_exit(9);
	mprotect(page, 4096, PROT_READ | PROT_WRITE);
}

static void count(int signo) { (void)signo; alarms++; }
static void leave(int signo) { (void)signo; siglongjmp(out, 1); }
static int recurse(int n) { volatile char frame[4096]; frame[0] = n; return recurse(n + 1) + frame[0]; }

static void repairing(void)
{
	struct sigaction action = {.sa_sigaction = repair, .sa_flags = SA_SIGINFO};
	page = mmap(0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	sigaction(SIGSEGV, &action, 0);
	page[5] = 7;
	printf("repaired %d times: %d\n", repairs, page[5]);
}

static void interrupting(void)
{
	struct sigaction action = {.sa_handler = count, .sa_flags = SA_RESTART};
	struct itimerval often = {{0, 1000}, {0, 1000}}, never = {{0, 0}, {0, 0}};
	double x = 1;
	int ends[2], status;
	char byte = 0;
	sigaction(SIGALRM, &action, 0);
	setitimer(ITIMER_REAL, &often, 0);
	while (alarms < 20)
		x = x * 0.5 + 1;	/* the registers of doubles are live when the handler comes */
	if (pipe(ends))
		exit(8);
	if (!fork()) {
		while (alarms < 5)
			pause();
		_exit(write(ends[1], "x", 1) == 1 ? 4 : 5);
	}
	setitimer(ITIMER_REAL, &often, 0);
	close(ends[1]);
	ssize_t got = read(ends[0], &byte, 1);
	while (waitpid(-1, &status, 0) < 0 && errno == EINTR)
		;
	setitimer(ITIMER_REAL, &never, 0);
	printf("x %.3f, read %zd, child's status %d\n", x, got, WIFEXITED(status) ? WEXITSTATUS(status) : -1);
}

static unsigned mxcsr_in_handler, mxcsr_in_frame;

static unsigned mxcsr(void)
{
	unsigned value;
	__asm__ volatile("stmxcsr %0" : "=m"(value));
	return value;
}

static void look(int signo, siginfo_t *info, void *context)
{
	(void)signo, (void)info;
	mxcsr_in_handler = mxcsr();
	mxcsr_in_frame = ((ucontext_t *)context)->uc_mcontext.fpregs->mxcsr;
}

/* A handler begins with the registers of a new program, and the program gets its own back. */
static void rounding(void)
{
	struct sigaction action = {.sa_sigaction = look, .sa_flags = SA_SIGINFO};
	unsigned upwards = 0x5f80, usual = 0x1f80;
	uint16_t control = 0x27f, usual_control = 0x37f;
	sigaction(SIGUSR2, &action, 0);
	__asm__ volatile("ldmxcsr %0\n	fldcw %1" : : "m"(upwards), "m"(control));
	raise(SIGUSR2);
	__asm__ volatile("fnstcw %0" : "=m"(control));
	printf("mxcsr %#x in the handler, %#x in its frame, %#x behind; control word %#x\n", mxcsr_in_handler, mxcsr_in_frame, mxcsr(), control);
	__asm__ volatile("ldmxcsr %0\n	fldcw %1" : : "m"(usual), "m"(usual_control));
}

static void overflowing(void)
{
	static char stack[65536];
	stack_t other = {.ss_sp = stack, .ss_size = sizeof stack};
	struct sigaction action = {.sa_handler = leave, .sa_flags = SA_ONSTACK | SA_NODEFER};
	sigaltstack(&other, 0);
	sigaction(SIGSEGV, &action, 0);
	if (!sigsetjmp(out, 1))
		recurse(0);
	printf("left the overflow\n");
}

int main(void)
{
	sigset_t usr1, pending;
	int status;
	setvbuf(stdout, 0, _IOLBF, 4096);
	repairing();
	rounding();
	overflowing();
	sigemptyset(&usr1);
	sigaddset(&usr1, SIGUSR1);
	sigprocmask(SIG_BLOCK, &usr1, 0);
	kill(getpid(), SIGUSR1);
	sigpending(&pending);
	printf("pending %d\n", sigismember(&pending, SIGUSR1));
	if (!fork()) {
		signal(SIGSEGV, SIG_DFL);
		*(volatile char *)8 = 1;
	}
	wait(&status);
	printf("the child died of %d\n", WIFSIGNALED(status) ? WTERMSIG(status) : 0);
	signal(SIGUSR1, SIG_DFL);
	if (!fork())
		interrupting(), exit(0);
	wait(&status);
	printf("interrupted: %d\n", status);
	sigprocmask(SIG_UNBLOCK, &usr1, 0);
	return 1;
}
