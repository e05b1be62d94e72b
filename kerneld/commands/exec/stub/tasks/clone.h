/* A task that a program asks for, by clone() or clone3(). */
#pragma once
#include "../native.h"

#define CLONE_VM 0x100UL
#define CLONE_FILES 0x400UL
#define CLONE_SIGHAND 0x800UL
#define CLONE_PIDFD 0x1000UL
#define CLONE_VFORK 0x4000UL
#define CLONE_PARENT 0x8000UL
#define CLONE_THREAD 0x10000UL
#define CLONE_PARENT_SETTID 0x100000UL
#define CLONE_CHILD_CLEARTID 0x200000UL
#define CLONE_CHILD_SETTID 0x1000000UL
#define CLONE_CLEAR_SIGHAND 0x100000000UL
#define CLONE_INTO_CGROUP 0x200000000UL
#define A_THREAD (CLONE_VM | CLONE_SIGHAND | CLONE_THREAD)
#define MAX_SET_TID 32

/* Linux's struct clone_args. */
struct clone3_args { u64 flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, cgroup; };

struct clone_request {
	u64 flags, exit_signal;
	u64 stack;	/* where the task's stack pointer begins; 0: where this one's is */
	u64 ptid, ctid, tls, pidfd;
	const struct clone3_args *clone3;	/* what only clone3() can say; 0 for clone() */
};

long do_thread(struct thread *t, struct ucontext *uc, const struct clone_request *request);
long do_share(struct thread *t, struct ucontext *uc, const struct clone_request *request);
long do_fork(struct thread *t, struct ucontext *uc, const struct clone_request *request);
