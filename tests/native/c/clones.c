/* Tasks by clone3() and by rare flags of clone(): what each begins with, what the parent is told, and which arguments are
 * refused. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

struct arguments { uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, cgroup, more[2]; };

#define CLEAR_SIGHAND 0x100000000ULL
#define INTO_CGROUP 0x200000000ULL
#define STACK 65536
#define SIZE 88

static volatile int caught;
static int pages[2];

static void on_signal(int signo)
{
	caught = signo;
}

static long clone3_(struct arguments *arguments, size_t size)
{
	return syscall(SYS_clone3, arguments, size);
}

static void refused(const char *what, struct arguments arguments, size_t size)
{
	long pid = clone3_(&arguments, size);
	if (pid == 0)
		_exit(0);
	printf("%s: %s\n", what, pid < 0 ? strerror(errno) : "done");
	fflush(stdout);
	if (pid > 0)
		waitpid(pid, 0, __WALL);
}

static void refusals(void)
{
	refused("size 0", (struct arguments){0}, 0);
	refused("a short size", (struct arguments){.exit_signal = SIGCHLD}, 63);
	refused("the first size", (struct arguments){.exit_signal = SIGCHLD}, 64);
	refused("more, of zeros", (struct arguments){.exit_signal = SIGCHLD}, SIZE + 16);
	refused("more, not of zeros", (struct arguments){.exit_signal = SIGCHLD, .more = {0, 1}}, SIZE + 16);
	refused("more than a page", (struct arguments){.exit_signal = SIGCHLD}, 5000);
	printf("no memory: %s\n", clone3_((void *)8, SIZE) < 0 ? strerror(errno) : "done");
	refused("no such signal", (struct arguments){.exit_signal = 65}, SIZE);
	refused("a signal over a byte", (struct arguments){.exit_signal = 0x111}, SIZE);
	refused("flags over 34 bits", (struct arguments){.flags = 1ULL << 40}, SIZE);
	refused("a signal in the flags", (struct arguments){.flags = SIGCHLD}, SIZE);
	refused("CLONE_DETACHED", (struct arguments){.flags = 0x400000}, SIZE);
	refused("handlers without memory", (struct arguments){.flags = CLONE_SIGHAND}, SIZE);
	refused("a thread without handlers", (struct arguments){.flags = CLONE_THREAD | CLONE_VM}, SIZE);
	refused("a thread with a signal", (struct arguments){.flags = CLONE_THREAD | CLONE_VM | CLONE_SIGHAND, .exit_signal = SIGCHLD}, SIZE);
	refused("handlers shared and cleared", (struct arguments){.flags = CLONE_VM | CLONE_SIGHAND | CLEAR_SIGHAND}, SIZE);
	refused("a stack without a size", (struct arguments){.stack = 4096}, SIZE);
	refused("a size without a stack", (struct arguments){.stack_size = 4096}, SIZE);
	refused("a stack in the kernel", (struct arguments){.stack = 1ULL << 63, .stack_size = 4096}, SIZE);
	refused("a cgroup without the size", (struct arguments){.flags = INTO_CGROUP}, 80);
	refused("a cgroup that is none", (struct arguments){.flags = INTO_CGROUP, .cgroup = 999}, SIZE);
	refused("tids without a number", (struct arguments){.set_tid = 8}, SIZE);
	refused("too many tids", (struct arguments){.set_tid = 8, .set_tid_size = 33}, SIZE);
	refused("tids nowhere", (struct arguments){.set_tid = 8, .set_tid_size = 1}, SIZE);
	refused("a pidfd nowhere", (struct arguments){.flags = CLONE_PIDFD, .pidfd = 8}, SIZE);
	refused("a tid nowhere", (struct arguments){.flags = CLONE_PARENT_SETTID, .parent_tid = 8}, SIZE);
	refused("a namespace of files beside a shared root", (struct arguments){.flags = CLONE_NEWNS | CLONE_FS}, SIZE);
}

static void children(void)
{
	int pidfd = -1, tid = 0, child_tid = 0, status;
	struct arguments arguments = {
		.flags = CLONE_PIDFD | CLONE_PARENT_SETTID | CLONE_CHILD_SETTID, .exit_signal = SIGUSR2,
		.pidfd = (uintptr_t)&pidfd, .parent_tid = (uintptr_t)&tid, .child_tid = (uintptr_t)&child_tid,
	};
	signal(SIGUSR2, on_signal);
	long pid = clone3_(&arguments, SIZE);
	if (pid == 0)
		_exit(child_tid == getpid() ? 5 : 6);
	struct pollfd poll_ = {.fd = pidfd, .events = POLLIN};
	poll(&poll_, 1, -1);
	waitpid(pid, &status, __WALL);
	printf("a child: tid told %d, in the parent %d, status %x, signal %d\n", tid == pid, child_tid, status, caught);
	close(pidfd);
	signal(SIGUSR1, on_signal);
	signal(SIGUSR2, SIG_IGN);
	fflush(stdout);
	arguments = (struct arguments){.flags = CLEAR_SIGHAND, .exit_signal = SIGCHLD};
	pid = clone3_(&arguments, SIZE);
	if (pid == 0) {
		kill(getpid(), SIGUSR2);
		kill(getpid(), SIGUSR1);
		_exit(7);
	}
	waitpid(pid, &status, 0);
	printf("a child without handlers: status %x\n", status);
	arguments.flags |= CLONE_VM | CLONE_VFORK;
	arguments.stack = (uintptr_t)mmap(0, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	arguments.stack_size = STACK;
	fflush(stdout);
	pid = clone3_(&arguments, SIZE);
	if (pid == 0) {
		kill(getpid(), SIGUSR1);
		_exit(7);
	}
	waitpid(pid, &status, 0);
	raise(SIGUSR1);
	printf("one that borrows the memory: status %x, and here %d was caught\n", status, caught == SIGUSR1);
}

static int to_grandparent(void *argument)
{
	(void)argument;
	pages[0] += getppid();
	_exit(pages[0] == pages[1] ? 8 : 9);
}

/* A child of a child that is its brother: the first waits for both. */
static void brothers(void)
{
	char *stack = mmap(0, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int status;
	pages[1] = getpid();
	fflush(stdout);
	pid_t child = fork();
	if (!child) {
		int pid = clone(to_grandparent, stack + STACK, CLONE_PARENT | SIGCHLD, 0);
		_exit(pid > 0 ? 3 : 4);
	}
	for (int i = 0, sum = 0; i < 2; i++) {
		pid_t pid = wait(&status);
		sum += WEXITSTATUS(status);
		if (i)
			printf("a child and its brother: %d, then no more: %d\n", sum, wait(0) < 0 && errno == ECHILD);
		(void)pid;
	}
}

static int set_page(void *argument)
{
	*(volatile int *)argument = 1;
	syscall(SYS_exit, 0);
	return 0;
}

/* A thread with a table of descriptors of its own: its end is not the process's. */
static void lone_thread(void)
{
	static int tid = -1, set;
	char *stack = mmap(0, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int flags = CLONE_VM | CLONE_SIGHAND | CLONE_THREAD | CLONE_CHILD_CLEARTID;
	clone(set_page, stack + STACK, flags, &set, 0, 0, &tid);
	while (__atomic_load_n(&tid, __ATOMIC_ACQUIRE))
		syscall(SYS_futex, &tid, 0, -1, 0, 0, 0);
	char *page = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	page[5] = 6;
	printf("a thread with its own descriptors: %d, and memory afterwards: %d\n", set, page[5]);
}

/* Whoever takes orphans gets those that the program has made, and no more. */
static void orphans(void)
{
	int status, count = 0, ends[2];
	char byte;
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	fflush(stdout);
	if (pipe(ends))
		exit(1);
	if (!fork()) {
		if (!fork()) {
			close(ends[1]);
			_exit((int)read(ends[0], &byte, 1));
		}
		_exit(0);
	}
	wait(&status);
	close(ends[1]);
	close(ends[0]);
	while (wait(&status) > 0)
		count++;
	printf("orphans: %d\n", count);
	prctl(PR_SET_CHILD_SUBREAPER, 0);
}

/* A child that shares the table of descriptors: what it closes is closed here, and both go on. */
static void shared_files(void)
{
	struct arguments arguments = {.flags = CLONE_FILES, .exit_signal = SIGCHLD};
	int fd = dup(0), other = dup(0), status;
	fflush(stdout);
	long pid = clone3_(&arguments, SIZE);
	if (pid == 0) {
		char *page = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		page[0] = 1;
		close(fd);
		if (syscall(SYS_close_range, other, other, 2 /* unshare */))
			_exit(9);
		_exit(fcntl(other, F_GETFD) < 0 ? page[0] : 8);
	}
	waitpid(pid, &status, 0);
	char *page = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	page[7] = 5;
	printf("a child with the same descriptors: %x, closed %d, open %d, memory %d\n", status, fcntl(fd, F_GETFD) < 0, fcntl(other, F_GETFD) >= 0, page[7]);
	fflush(stdout);
	pid = fork();
	if (!pid)
		_exit(6);
	waitpid(pid, &status, 0);
	printf("and another child: %x\n", status);
}

/* Parents that end while their child is being made: it lives on. Each writes a byte into a pipe. */
static void daemons(void)
{
	int ends[2], count = 0;
	char byte;
	fflush(stdout);
	if (pipe(ends))
		exit(1);
	for (int i = 0; i < 30; i++) {
		pid_t pid = fork();
		if (!pid) {
			if (fork())
				_exit(0);
			_exit(write(ends[1], "d", 1) != 1);
		}
		waitpid(pid, 0, 0);
	}
	close(ends[1]);
	while (read(ends[0], &byte, 1) == 1)
		count++;
	printf("children of parents that had ended: %d\n", count);
}

/* More forks that the host refuses than kerneld has tokens; then one that is made. */
static void refused_by_the_host(void)
{
	int failed = 0, status = 0;
	for (int i = 0; i < 40; i++) {
		struct arguments arguments = {.flags = CLONE_NEWNS | CLONE_FS, .exit_signal = SIGCHLD};
		failed += clone3_(&arguments, SIZE) < 0;
		arguments.flags |= CLONE_VM | CLONE_VFORK;
		failed += clone3_(&arguments, SIZE) < 0;
	}
	fflush(stdout);
	pid_t pid = fork();
	if (!pid)
		_exit(1);
	waitpid(pid, &status, 0);
	printf("%d refused, one made: %x\n", failed, status);
}

int main(void)
{
	refusals();
	children();
	brothers();
	lone_thread();
	orphans();
	daemons();
	shared_files();
	refused_by_the_host();
	return 0;
}
