/* New tasks. fork: kerneld copies the address space, then the host copies the process; the child, still in the stub,
 * drops all of the TLB and attaches with the token. A thread shares everything and gets an area of its own. */
#include "native.h"

#define CLONE_VM 0x100UL
#define CLONE_FILES 0x400UL
#define CLONE_SIGHAND 0x800UL
#define CLONE_PIDFD 0x1000UL
#define CLONE_PTRACE 0x2000UL
#define CLONE_VFORK 0x4000UL
#define CLONE_PARENT 0x8000UL
#define CLONE_THREAD 0x10000UL
#define CLONE_SETTLS 0x80000UL
#define CLONE_PARENT_SETTID 0x100000UL
#define CLONE_CHILD_CLEARTID 0x200000UL
#define CLONE_CHILD_SETTID 0x1000000UL
#define TID_FLAGS (CLONE_PARENT_SETTID | CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID | CLONE_PIDFD)
#define A_THREAD (CLONE_VM | CLONE_SIGHAND | CLONE_THREAD)

extern long clone_on(u64 flags, u64 stack, u64 ptid, u64 ctid, u64 tls, void (*function)(u64));
extern void begin_with_frame(u64 sp);
struct frame { u64 restorer; struct ucontext uc; struct siginfo info; };

static void child_of_fork(struct thread *t, u64 token, u64 flags, u64 ctid)
{
	forget_other_areas(t);
	sys1(NR_close, t->conn);
	tlb_drop_all();
	t->tid = sys0(NR_gettid);
	t->clear_tid = 0;
	t->conn = kerneld_connect(process.socket_path);
	if (t->conn < 0)
		die("a child cannot connect to kerneld");
	attach(t, 0, token);
	go_native(t);
	agent_start(t);
	if (flags & CLONE_CHILD_SETTID)
		user_copy((void *)ctid, &t->tid, 4);
	if (flags & CLONE_CHILD_CLEARTID) {
		t->clear_tid = ctid;
		sys1(NR_set_tid_address, ctid);
	}
}

/* args: stack, ptid, ctid, tls. */
static long do_fork(struct thread *t, struct ucontext *uc, u64 flags, const u64 *args)
{
	u64 none[6] = {0};
	int pidfd = -1, tid;
	struct answer token = ask(t, KD_CLONE, none, 0, 0, -1);
	if (token.ret < 0)
		return token.ret;
	/* What the host would write to the program's memory is written by the stub: its pages may be not there. */
	long pid = sys5(NR_clone, (flags & ~(TID_FLAGS | CLONE_VM)) | (flags & CLONE_PIDFD), 0, &pidfd, 0, args[3]);
	if (pid == 0) {
		child_of_fork(t, token.ret, flags, args[2]);
		if (args[0])
			uc->mc.rsp = args[0];
		return 0;
	}
	if (pid > 0) {
		tid = pid;
		if (flags & CLONE_PARENT_SETTID)
			user_copy((void *)args[1], &tid, 4);
		if (flags & CLONE_PIDFD)
			user_copy((void *)args[1], &pidfd, 4);
	}
	return pid;
}

static void thread_begin(u64 frame)
{
	struct thread *t = this_thread();
	t->tid = sys0(NR_gettid);
	t->conn = kerneld_connect(process.socket_path);
	if (t->conn < 0)
		die("a thread cannot connect to kerneld");
	attach(t, t->tid, 0);
	u64 args[6] = {1};
	if (ask_ret(t, KD_NATIVE, args) < 0)
		die("kerneld refuses a thread");
	set_altstack(t);
	begin_with_frame(frame + 8);
}

/* A process in the same address space: vfork's child, which borrows it until it execs or exits, or one that stays. */
static void sharer_begin(u64 frame)
{
	struct thread *t = this_thread();
	t->tid = sys0(NR_gettid);
	t->conn = kerneld_connect(process.socket_path);
	if (t->conn < 0)
		die("a child cannot connect to kerneld");
	attach(t, 0, t->token);
	u64 args[6] = {1};
	if (ask_ret(t, KD_NATIVE, args) < 0)
		die("kerneld refuses a child");
	set_altstack(t);
	begin_with_frame(frame + 8);
}

/* Make an area in which a task begins where this one is, on the stack args[0], with 0 as the call's result. */
static struct thread *new_thread(struct thread *t, struct ucontext *uc, u64 flags, const u64 *args, u64 **start)
{
	struct thread *new = thread_area();
	if (!new)
		return 0;
	const u32 *sw = (const u32 *)(uc->mc.fpstate + 464);
	u64 xstate = sw[0] == 0x46505853U ? sw[1] : 512;
	u64 top = gate_of(new) + AREA_BYTES - 64;
	u64 fpstate = (top - xstate) & -64UL;
	struct frame *frame = (struct frame *)((fpstate - sizeof *frame) & -16UL);
	memcpy((void *)fpstate, (void *)uc->mc.fpstate, xstate);
	frame->uc = *uc;
	frame->uc.mc.fpstate = fpstate;
	frame->uc.mc.rax = 0;
	if (args[0])
		frame->uc.mc.rsp = args[0];
	frame->uc.stack = (struct stack){(u64)new + PAGE_BYTES + BUFFER_BYTES, 0, 0, AREA_BYTES - 2 * PAGE_BYTES - BUFFER_BYTES};
	memset(&new->altstack, 0, sizeof new->altstack);
	if (flags & CLONE_VFORK)
		new->altstack = t->altstack;
	new->is_borrower = !(flags & CLONE_FILES);
	new->masked = t->masked;
	new->clear_tid = flags & CLONE_CHILD_CLEARTID ? args[2] : 0;
	new->mapping = 0;
	*start = (u64 *)((u64)frame - 64);
	**start = (u64)frame;
	if (flags & (CLONE_PARENT_SETTID | CLONE_PIDFD))
		touch(args[1], 4, 1);
	if (flags & (CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID))
		touch(args[2], 4, 1);
	return new;
}

static long do_thread(struct thread *t, struct ucontext *uc, u64 flags, const u64 *args)
{
	u64 *start;
	struct thread *new = new_thread(t, uc, flags, args, &start);
	if (!new)
		return -EAGAIN;
	long tid = clone_on(flags, (u64)start, args[1], args[2], args[3], thread_begin);
	if (tid < 0)
		free_area(new);
	return tid;
}

static long do_share(struct thread *t, struct ucontext *uc, u64 flags, const u64 *args)
{
	struct kernel_sigaction actions[65];
	u64 *start, share[6] = {1};
	struct answer token = ask(t, KD_CLONE, share, 0, 0, -1);
	if (token.ret < 0)
		return token.ret;
	struct thread *new = new_thread(t, uc, flags, args, &start);
	if (!new)
		return -EAGAIN;
	new->token = token.ret;
	memcpy(actions, process.actions, sizeof actions);
	long pid = clone_on(flags, (u64)start, args[1], args[2], args[3], sharer_begin);
	if (pid < 0 || flags & CLONE_VFORK) {
		/* The child is through with this memory; its handlers were its own. */
		if (!(flags & CLONE_SIGHAND))
			memcpy(process.actions, actions, sizeof actions);
		free_area(new);
	}
	return pid;
}

long sys_clone(struct thread *t, struct ucontext *uc, u64 flags, const u64 *args)
{
	if ((flags & A_THREAD) == A_THREAD)
		return do_thread(t, uc, flags, args);
	/* A child of another's, or one that is traced: kerneld takes a child from its parent alone. */
	if (flags & (CLONE_THREAD | CLONE_PARENT | CLONE_PTRACE) || (flags & (CLONE_SIGHAND | CLONE_VM)) == CLONE_SIGHAND)
		return -EINVAL;
	return flags & CLONE_VM ? do_share(t, uc, flags, args) : do_fork(t, uc, flags, args);
}
