/* Tasks that end while their own memory goes: after its last instruction a task touches nothing of it. The argument
 * is the number of rounds; without one it is the program that a thread executes in the end. */
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define BYTES 65536
#define A_THREAD (CLONE_VM | CLONE_THREAD | CLONE_SIGHAND | CLONE_FS | CLONE_FILES)

static volatile int is_done;
static volatile pid_t tid;
static char *program, *again[3];

static char *map(void)
{
	char *start = mmap(0, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (start == MAP_FAILED)
		exit(1);
	return start;
}

/* It says that it is done, and makes its last call. Between the two it touches neither its stack nor its TLS. */
static int say_done(void *tls)
{
	syscall(SYS_set_robust_list, tls, 24);
	__asm__ volatile("movl $1, %0\n	syscall" : "=m"(is_done) : "a"(SYS_exit), "D"(0) : "rcx", "r11", "memory");
	return 0;
}

/* It unmaps its own stack and makes its last call, as musl's and glibc's detached threads do. */
static int unmap_and(void *stack, long last, long rdi, long rsi, long rdx)
{
	register long kept __asm__("r12") = last, first __asm__("r13") = rdi, second __asm__("r14") = rsi, third __asm__("r15") = rdx;
	__asm__ volatile("syscall\n	mov %%r12, %%rax\n	mov %%r13, %%rdi\n	mov %%r14, %%rsi\n	mov %%r15, %%rdx\n"
			 "	syscall\n	hlt"
			 :
			 : "a"(SYS_munmap), "D"(stack), "S"(BYTES), "r"(kept), "r"(first), "r"(second), "r"(third)
			 : "rcx", "rdx", "r11", "memory");
	return 0;
}

static int unmap_and_exit(void *stack)
{
	return unmap_and(stack, SYS_exit, 3, 0, 0);
}

static int unmap_and_exit_group(void *stack)
{
	return unmap_and(stack, SYS_exit_group, 4, 0, 0);
}

static int unmap_and_exec(void *stack)
{
	return unmap_and(stack, SYS_execve, (long)program, (long)again, 0);
}

/* The parent takes stack and TLS as soon as the thread is done; the word to be cleared and the list of futexes go with them. */
static int loses_its_memory(int flags)
{
	char *stack = map(), *tls = map();
	is_done = 0;
	stack[BYTES - 5000] = tls[0] = 1;
	tls[0] = 0;
	if (clone(say_done, stack + BYTES, A_THREAD | CLONE_SETTLS | flags, tls, 0, tls, tls + 128) < 0)
		return 0;
	while (!is_done)
		sched_yield();
	return !munmap(stack, BYTES) && !munmap(tls, BYTES);
}

static int unmaps_its_stack(void)
{
	char *stack = map();
	tid = 1;
	if (clone(unmap_and_exit, stack + BYTES, A_THREAD | CLONE_CHILD_CLEARTID, stack, 0, 0, &tid) < 0)
		return 0;
	while (tid)
		sched_yield();
	return 1;
}

static int child_ends(int (*function)(void *), int flags, int expected)
{
	int status;
	char *stack = map();
	pid_t pid = clone(function, stack + BYTES, CLONE_VM | flags | SIGCHLD, stack);
	return pid > 0 && waitpid(pid, &status, 0) == pid && status == expected;
}

int main(int argc, char **argv)
{
	int rounds = argc > 1 ? atoi(argv[1]) : 0, counts[6] = {0};
	if (!rounds)
		return puts("another program") < 0;
	program = again[0] = argv[0];
	for (int i = 0; i < rounds; i++) {
		counts[0] += loses_its_memory(0);
		counts[1] += loses_its_memory(CLONE_CHILD_CLEARTID);
		counts[2] += unmaps_its_stack();
		counts[3] += child_ends(unmap_and_exit, CLONE_VFORK, 0x300);
		counts[4] += child_ends(unmap_and_exit_group, CLONE_VFORK, 0x400);
		counts[5] += child_ends(unmap_and_exit_group, 0, 0x400);
	}
	for (int i = 0; i < 6; i++)
		printf("%d%c", counts[i], i < 5 ? ' ' : '\n');
	fflush(stdout);
	char *stack = map();
	clone(unmap_and_exec, stack + BYTES, A_THREAD, stack);
	for (;;)
		pause();
}
