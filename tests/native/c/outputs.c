/* What clone() and prctl() write, while another thread takes the page away all the time; and calls with 36 MiB. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>
#include <asm/prctl.h>

#define TURNS 60
#define LARGE (36UL << 20)
#define HUGE_PAGE (2UL << 20)

struct words { int parent, child, pidfd; char name[16]; int signal; unsigned long fs; };
static struct words *words;
static atomic_int is_over;

static void *take_away(void *unused)
{
	while (!is_over)
		madvise(words, 4096, MADV_PAGEOUT);
	return unused;
}

static int child(void *unused)
{
	(void)unused;
	return words->child == (int)syscall(SYS_gettid) && words->parent == words->child ? 3 : 4;
}

static void ask_many(void)
{
	int names = 0, signals = 0, bases = 0;
	prctl(PR_SET_PDEATHSIG, SIGUSR1);
	for (int i = 0; i < TURNS; i++) {
		memcpy(words->name, "a name", 7);
		names += !prctl(PR_SET_NAME, words->name) && !prctl(PR_GET_NAME, words->name) && !strcmp(words->name, "a name");
		signals += !prctl(PR_GET_PDEATHSIG, &words->signal) && words->signal == SIGUSR1;
		bases += !syscall(SYS_arch_prctl, ARCH_GET_FS, &words->fs) && words->fs == (unsigned long)pthread_self();
	}
	printf("prctl: %d %d, arch_prctl: %d\n", names, signals, bases);
	char *last = (char *)words + 4096 - 6;
	memcpy(last, "short", 6);
	printf("a name at the end of memory: %d, nowhere: %d %d\n", prctl(PR_SET_NAME, last), prctl(PR_SET_NAME, 8), prctl(PR_GET_NAME, 8));
}

static void clone_many(void)
{
	static char stack[65536] __attribute__((aligned(16)));
	int told = 0, ended = 0, status;
	for (int i = 0; i < TURNS / 3; i++) {
		words->parent = words->child = 0;
		int flags = CLONE_VM | CLONE_PARENT_SETTID | CLONE_CHILD_SETTID | (i % 3 ? 0 : CLONE_VFORK);
		int pid = clone(child, stack + sizeof stack, flags | SIGCHLD, 0, &words->parent, 0, &words->child);
		told += pid > 0 && words->parent == pid;
		waitpid(pid, &status, 0);
		ended += WIFEXITED(status) && WEXITSTATUS(status) == 3;
	}
	printf("clone: %d told, %d ended\n", told, ended);
	struct { uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls; } args = {
		.flags = CLONE_PIDFD | CLONE_VM | CLONE_VFORK, .pidfd = (uint64_t)&words->pidfd, .exit_signal = SIGCHLD};
	args.stack = (uint64_t)stack;
	args.stack_size = sizeof stack;
	int pidfds = 0;
	for (int i = 0; i < TURNS / 3; i++) {
		long pid;
		words->pidfd = -1;
		__asm__ volatile("syscall\n	test %%rax, %%rax\n	jnz 1f\n	mov $60, %%eax\n	xor %%edi, %%edi\n	syscall\n1:"
				 : "=a"(pid) : "a"(435L), "D"(&args), "S"(sizeof args) : "rcx", "r11", "memory");
		pidfds += pid > 0 && words->pidfd >= 0 && !close(words->pidfd);
		waitpid(pid, 0, 0);
	}
	printf("clone3: %d pidfds\n", pidfds);
}

static void *write_all(void *from)
{
	struct iovec halves[2] = {{from, LARGE / 2}, {(char *)from + LARGE / 2, LARGE / 2}};
	int *ends = *(int **)from;
	long whole = write(ends[1], from, LARGE), parts = writev(ends[1], halves, 2);
	printf("written: %ld %ld\n", whole, parts);
	return 0;
}

static void transfer(void)
{
	char *memory = mmap(0, 3 * LARGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *from = (char *)(((uintptr_t)memory + HUGE_PAGE) & -HUGE_PAGE), *to = from + LARGE;
	int ends[2];
	pthread_t thread;
	madvise(from, 2 * LARGE, MADV_HUGEPAGE);
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends))
		return;
	*(int **)from = ends;
	from[LARGE - 1] = 'x';
	pthread_create(&thread, 0, write_all, from);
	long whole = recv(ends[0], to, LARGE, MSG_WAITALL);
	struct iovec halves[2] = {{to, LARGE / 2}, {to + LARGE / 2, LARGE / 2}};
	struct msghdr message = {.msg_iov = halves, .msg_iovlen = 2};
	int is_same = !memcmp(from, to, 4096) && to[LARGE - 1] == 'x';
	to[LARGE - 1] = 0;
	long parts = recvmsg(ends[0], &message, MSG_WAITALL);
	pthread_join(thread, 0);
	printf("received: %ld %ld, the same: %d %d\n", whole, parts, is_same, to[LARGE - 1] == 'x');
}

int main(void)
{
	pthread_t thread;
	char *memory = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	munmap(memory + 4096, 4096);
	words = (struct words *)memory;
	pthread_create(&thread, 0, take_away, 0);
	ask_many();
	clone_many();
	is_over = 1;
	pthread_join(thread, 0);
	transfer();
	return 0;
}
