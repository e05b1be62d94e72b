/* A program of the assignment's, under `kerneld run --abi f24`: what its system calls promise. Ends with 0, or says which
   line does not hold. Its target is itself. */
#define _GNU_SOURCE
#include <linux/shadowpt.h>

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096UL
#define RW (PROT_READ | PROT_WRITE)
#define PRIVATE (MAP_PRIVATE | MAP_ANONYMOUS)
#define HERE(what) require((what), #what, __LINE__)
#define FAILS(error, ...) (errno = 0, syscall(__VA_ARGS__) == -1 && errno == (error))
#define OPEN __NR_shadowpt_open
#define CLOSE __NR_shadowpt_close
#define START __NR_shadowpt_start
#define STOP __NR_shadowpt_stop
#define CONTENTS __NR_shadowpt_page_contents

static char *window;
static struct shadow_pte *memory;
static struct user_shadow_pt table;

static void require(int holds, const char *what, int line)
{
	if (holds)
		return;
	fprintf(stderr, "run_check.c:%d: %s (errno %d: %s)\n", line, what, errno, strerror(errno));
	_exit(1);
}

static void fill(void)
{
	table.start_vaddr = (unsigned long)window;
	table.end_vaddr = (unsigned long)window + 8 * PAGE;
	table.entries = memory;
}

static int status_of(pid_t child)
{
	int status;

	HERE(waitpid(child, &status, 0) == child);
	return status;
}

static void other_calls(void)
{
	char *mapped;

	errno = 77;
	HERE(syscall(SYS_getpid) == getpid() && errno == 77);
	mapped = (char *)syscall(SYS_mmap, NULL, PAGE, RW, PRIVATE, -1, 0L);
	HERE(mapped != MAP_FAILED && (mapped[0] = 1) && syscall(SYS_munmap, mapped, PAGE) == 0 && errno == 77);
	HERE(FAILS(EBADF, SYS_close, -1));
	HERE(FAILS(ENOSYS, 100000));
	/* Another semester's numbers are the real kernel's business. */
	HERE(FAILS(ENOSYS, 470));
}

static void refusals(void)
{
	struct user_shadow_pt bad;

	HERE(FAILS(EINVAL, CLOSE) && FAILS(EINVAL, START) && FAILS(EINVAL, STOP));
	HERE(FAILS(EFAULT, OPEN, getpid(), NULL) && FAILS(EFAULT, OPEN, getpid(), (void *)8));
	HERE(FAILS(EINVAL, OPEN, -1, &table) && FAILS(EINVAL, OPEN, 0x7ffffff0, &table) && FAILS(EINVAL, OPEN, 0, &table));
	bad = table;
	bad.end_vaddr = bad.start_vaddr;
	HERE(FAILS(EINVAL, OPEN, getpid(), &bad));
	bad.end_vaddr = table.end_vaddr + 1;
	HERE(FAILS(EINVAL, OPEN, getpid(), &bad));
	bad = table;
	bad.entries = (void *)((char *)memory + 8);
	HERE(FAILS(EINVAL, OPEN, getpid(), &bad));
	bad.entries = (void *)window;
	HERE(FAILS(EINVAL, OPEN, getpid(), &bad));
}

static void life(void)
{
	static unsigned char page[PAGE];
	pid_t child;

	HERE(syscall(OPEN, getpid(), &table) == 0 && memory[1].vaddr == 0);
	HERE(FAILS(EBUSY, OPEN, getpid(), &table));
	HERE(syscall(START) == 0 && memory[1].vaddr == (unsigned long)window + PAGE);
	HERE(memory[0].state_flags == 7 && memory[1].state_flags == 3 && memory[7].state_flags == 3);
	window[PAGE] = 'x';
	HERE(syscall(START) == 0 && memory[1].state_flags == 7);
	HERE(munmap(window + 7 * PAGE, PAGE) == 0 && syscall(START) == 0 && memory[7].state_flags == 0);
	HERE(mmap(window + 7 * PAGE, PAGE, RW, PRIVATE | MAP_FIXED, -1, 0) == window + 7 * PAGE);
	if (memory[1].pfn != 0) {
		HERE(syscall(CONTENTS, memory[1].pfn, page) == 0 && page[0] == 'x');
		HERE(FAILS(EFAULT, CONTENTS, memory[1].pfn, (void *)8));
	}
	HERE(FAILS(EINVAL, CONTENTS, 0UL, page));
	child = fork();
	if (child == 0) {
		/* Not the opener; the table is there, and a write to it is a real SIGSEGV. */
		HERE(FAILS(EPERM, CLOSE) && FAILS(EPERM, STOP) && memory[1].vaddr != 0);
		signal(SIGSEGV, SIG_DFL);
		memory[0].pfn = 1;
		_exit(0);
	}
	child = status_of(child);
	HERE(WIFSIGNALED(child) && WTERMSIG(child) == SIGSEGV);
	HERE(syscall(STOP) == 0 && syscall(STOP) == 0 && syscall(CLOSE) == 0 && FAILS(EINVAL, CLOSE));
	/* Fresh memory, writable again. */
	HERE(memory[1].vaddr == 0);
	memory[1].vaddr = 5;
	HERE(FAILS(EINVAL, OPEN, getpid(), &table));
	HERE(madvise(memory, PAGE, MADV_DONTNEED) == 0 && syscall(OPEN, getpid(), &table) == 0 && syscall(CLOSE) == 0);
	HERE(mprotect(memory, PAGE, PROT_READ | PROT_EXEC) == 0 && syscall(OPEN, getpid(), &table) == 0);
	HERE(syscall(CLOSE) == 0 && FAILS(EFAULT, SYS_getcwd, memory, PAGE) && mprotect(memory, PAGE, RW) == 0);
	HERE(madvise(memory, PAGE, MADV_DONTNEED) == 0);
}

static void cut(void)
{
	struct user_shadow_pt large = table;
	size_t bytes = SPT_TABLE_BYTES(0, MAX_SPT_RANGE);

	large.entries = mmap(NULL, bytes, RW, PRIVATE, -1, 0);
	large.end_vaddr = large.start_vaddr + 4 * MAX_SPT_RANGE;
	HERE(syscall(OPEN, getpid(), &large) == 0 && large.end_vaddr == large.start_vaddr + MAX_SPT_RANGE);
	HERE(syscall(START) == 0 && large.entries[2047].vaddr == large.end_vaddr - PAGE && syscall(CLOSE) == 0);
	munmap(large.entries, bytes);
}

static void many(void)
{
	for (int i = 0; i < 200; i++) {
		HERE(syscall(OPEN, getpid(), &table) == 0 && syscall(START) == 0);
		HERE(memory[0].state_flags == 7 && syscall(CLOSE) == 0);
	}
}

static void *hammer(void *unused)
{
	for (int i = 0; i < 100; i++)
		HERE(syscall(i & 1 ? START : STOP) == 0 && memory[2].state_flags != 99);
	return unused;
}

static volatile sig_atomic_t handled;

static void on_tick(int signo)
{
	int before = errno;

	(void)signo;
	HERE(syscall(START) == 0);
	handled++;
	errno = before;
}

static void threads_and_signals(void)
{
	struct sigaction action = { .sa_handler = on_tick };
	/* By processor time: on a busy machine a fork would find a signal of the clock each time that it is tried again. */
	struct itimerval often = { { 0, 7000 }, { 0, 7000 } }, never = { { 0, 0 }, { 0, 0 } };
	pthread_t threads[8];

	HERE(syscall(OPEN, getpid(), &table) == 0);
	sigaction(SIGPROF, &action, NULL);
	setitimer(ITIMER_PROF, &often, NULL);
	for (int i = 0; i < 8; i++)
		HERE(pthread_create(&threads[i], NULL, hammer, NULL) == 0);
	while (handled < 20) {
		/* The child of a fork at any moment is not held up by a lock that it has copied. */
		pid_t child = fork();
		if (child == 0) {
			setitimer(ITIMER_PROF, &never, NULL);
			signal(SIGPROF, SIG_IGN);
			_exit(FAILS(EPERM, CLOSE) ? 0 : 1);
		}
		HERE(child > 0);
		while (waitpid(child, NULL, WNOHANG) == 0)
			HERE(syscall(START) == 0);
	}
	for (int i = 0; i < 8; i++)
		HERE(pthread_join(threads[i], NULL) == 0);
	setitimer(ITIMER_PROF, &never, NULL);
	HERE(syscall(CLOSE) == 0);
}

/* A program that closes every descriptor closes the connection too, which closes the table. */
static void closed_descriptors(void)
{
	HERE(syscall(OPEN, getpid(), &table) == 0);
	for (int fd = 3; fd < 1024; fd++)
		close(fd);
	HERE(FAILS(EINVAL, CLOSE));
	memory[0].pfn = 9;
	HERE(memory[0].pfn == 9 && madvise(memory, PAGE, MADV_DONTNEED) == 0);
	HERE(syscall(OPEN, getpid(), &table) == 0 && syscall(CLOSE) == 0);
}

int main(void)
{
	window = mmap(NULL, 8 * PAGE, RW, PRIVATE, -1, 0);
	memory = mmap(NULL, PAGE, RW, PRIVATE, -1, 0);
	window[0] = 1;
	fill();
	other_calls();
	refusals();
	life();
	cut();
	many();
	threads_and_signals();
	closed_descriptors();
	/* Left open: the kernel closes it. */
	HERE(syscall(OPEN, getpid(), &table) == 0 && syscall(START) == 0);
	return 0;
}
