/* The clock, read without a system call: into a fresh page, into none, and while signals come; and forbidden (PR_SET_TSC). */
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static sigjmp_buf out;
static volatile int alarms;

static void leave(int signo) { (void)signo; siglongjmp(out, 1); }
static void count(int signo) { (void)signo; alarms++; }

/* Faults, memory calls and a child go on, though the processor's clock may not be read. */
static void forbidden(void)
{
	enum { PAGES = 64 };
	int status;
	signal(SIGSEGV, leave);
	prctl(PR_SET_TSC, PR_TSC_SIGSEGV, 0, 0, 0);
	for (int i = 0; i < PAGES; i++) {
		volatile char *page = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		*page = 1;
		munmap((void *)page, 4096);
	}
	if (!sigsetjmp(out, 1)) {
		__builtin_ia32_rdtsc();
		printf("the processor's clock: read\n");
	} else {
		printf("the processor's clock: SIGSEGV\n");
	}
	fflush(stdout);
	if (!fork())
		_exit(0);
	wait(&status);
	prctl(PR_SET_TSC, PR_TSC_ENABLE, 0, 0, 0);
	printf("its child: %d, allowed again: %d\n", status, __builtin_ia32_rdtsc() != 0);
}

int main(void)
{
	struct timespec *fresh = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), last = {0, 0}, now;
	struct itimerval often = {{0, 500}, {0, 500}}, never = {{0, 0}, {0, 0}};
	int back = 0, status;
	printf("there is one: %d, room for a signal: %d\n", getauxval(AT_SYSINFO_EHDR) != 0, getauxval(AT_MINSIGSTKSZ) >= 2048);
	int ret = clock_gettime(CLOCK_REALTIME, fresh);
	printf("%d %d\n", ret, fresh->tv_sec > 1000000000);
	fflush(stdout);
	signal(SIGSEGV, leave);
	if (!sigsetjmp(out, 1)) {
		munmap(fresh, 4096);
		printf("to nowhere: %d\n", clock_gettime(CLOCK_MONOTONIC, fresh));
	} else {
		printf("to nowhere: SIGSEGV\n");
	}
	signal(SIGALRM, count);
	setitimer(ITIMER_REAL, &often, 0);
	while (alarms < 20) {
		clock_gettime(CLOCK_MONOTONIC, &now);
		back += now.tv_sec < last.tv_sec || (now.tv_sec == last.tv_sec && now.tv_nsec < last.tv_nsec);
		last = now;
	}
	setitimer(ITIMER_REAL, &never, 0);
	printf("back: %d, %d\n", back, time(0) > 1000000000);
	fflush(stdout);
	if (!fork())
		_exit(clock_gettime(CLOCK_MONOTONIC, &now) || now.tv_sec < last.tv_sec);
	wait(&status);
	printf("a child: %d\n", status);
	forbidden();
	return 0;
}
