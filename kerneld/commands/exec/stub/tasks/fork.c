/* New tasks. fork: kerneld copies the address space, then the host copies the process; the child, still in the stub,
 * drops all of the TLB and attaches with the token. A thread shares everything and gets an area of its own. */
#include "clone.h"

extern long clone_on(u64 flags, u64 stack, u64 ptid, u64 ctid, u64 tls, void (*function)(u64));
extern long clone3_on(const struct clone3_args *args, u64 size, void (*function)(u64));
extern void begin_with_frame(u64 sp);
#define FUTEX_WAIT_PRIVATE 128
#define FUTEX_WAKE_PRIVATE 129
enum { NOT_TOLD, IS_WAITED_FOR, IS_BEING_TOLD, TOLD, TELLS_ITSELF, TELLING = 7 };	/* thread.is_told, with a serial number */
static u64 last_serial;	/* of a task; an area that is used again is empty, and knows none */
struct frame { u64 restorer; struct ucontext uc; struct siginfo info; };

static void child_of_fork(struct thread *t, const struct clone_request *request, int conn, u64 token)
{
	forget_other_areas(t);
	descriptors_fork();
	room_forget();
	process.shared_waits = 0;
	/* A table of descriptors that is shared is the parent's too. */
	if (request->flags & CLONE_FILES)
		process.ram_fd = -1;
	else
		sys1(NR_close, t->conn);
	t->ring = 0;
	t->advances = 0;
	t->mapped_fd = -1;
	process.is_ending = process.has_odd_children = 0;
	forget_tracees();
	process.dump = process.sharers_begin = process.agent_drops = 0;
	process.dumper = 0;
	tlb_drop_all();
	t->tid = sys0(NR_gettid);
	t->clear_tid = t->robust = 0;
	t->is_borrower = t->is_sharer = t->is_brief = process.has_sharers = 0;
	t->left_child = 0;
	if (t->actions)
		memcpy(process.actions, t->actions, sizeof process.actions);
	t->actions = 0;
	t->conn = conn;
	attach(t, 0, 0, token);
	agent_start();
	begin_as_init();
	drop_all_pending(t);
	if (request->flags & CLONE_CLEAR_SIGHAND)
		clear_handlers();
	if (request->flags & CLONE_CHILD_SETTID)
		user_copy((void *)request->ctid, &t->tid, 4);
	if (request->flags & CLONE_CHILD_CLEARTID) {
		t->clear_tid = request->ctid;
		sys1(NR_set_tid_address, request->ctid);
	}
}

/* What the host would write to the program's memory is written by the stub: its pages may be not there. The handlers
 * that it would clear are the stub's too. */
static long host_fork(const struct clone_request *request, int *pidfd)
{
	u64 flags = request->flags & ~(CLONE_PARENT_SETTID | CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID | CLONE_CLEAR_SIGHAND);
	if (!request->clone3)
		return sys5(NR_clone, flags | request->exit_signal, 0, pidfd, 0, request->tls);
	struct clone3_args args = *request->clone3;
	args.flags = flags;
	args.pidfd = (u64)pidfd;
	args.child_tid = args.parent_tid = args.stack = args.stack_size = 0;
	return sys2(NR_clone3, &args, sizeof args);
}

static void cancel_child(struct thread *t, int conn, u64 token)
{
	u64 args[6] = {CLONE_CANCEL, token};
	sys1(NR_close, conn);
	ask(t, KD_CLONE, args, 0, 0, -1);
}

/* A connection for the new task, and kerneld's token for it; 0 or -errno. */
static long prepare_child(struct thread *t, u64 how, int *conn, u64 *token)
{
	struct request requests[2] = {{.nr = KD_CONNECT}, {.nr = KD_CLONE, .args = {how}}};
	struct answer answers[2];
	if (ask_many(t, requests, 2, 0, 0, 0, 0, answers) < 2)
		return -EAGAIN;
	*token = answers[1].ret;
	*conn = answers[0].ret < 0 ? -1 : hide_fd(answers[0].fd[0]);
	if (*conn >= 0 && answers[1].ret >= 0)
		return 0;
	if (answers[1].ret >= 0)
		cancel_child(t, *conn, *token);
	else
		sys1(NR_close, *conn);
	return *conn < 0 ? -EAGAIN : answers[1].ret;
}

long do_fork(struct thread *t, struct ucontext *uc, const struct clone_request *request)
{
	u64 token;
	int conn, pidfd = -1, tid;
	if (request->flags & CLONE_PIDFD && touch(request->pidfd, 4, 1))
		return -EFAULT;
	long ret = prepare_child(t, 0, &conn, &token);
	if (ret)
		return ret;
	long pid = host_fork(request, &pidfd);
	if (pid == 0) {
		child_of_fork(t, request, conn, token);
		if (request->stack)
			uc->mc.rsp = request->stack;
		return 0;
	}
	if (pid < 0) {
		cancel_child(t, conn, token);
		return pid;
	}
	ring_name_child(t, token, pid);
	if (!(request->flags & CLONE_FILES))
		sys1(NR_close, conn);
	tid = pid;
	if (request->flags & CLONE_PARENT_SETTID)
		user_copy((void *)request->ptid, &tid, 4);
	if (request->flags & CLONE_PIDFD)
		user_copy((void *)request->pidfd, &pidfd, 4);
	return pid;
}

/* Change who tells a task of its number, if that is `from`. 1 if it was. */
static int change_telling(struct thread *t, u64 from, u64 to)
{
	return __atomic_compare_exchange_n(&t->is_told, &from, to, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

/* CLONE_PARENT_SETTID: the parent writes, before the task runs its program. Later is too late: the task may have ended, and
 * the word may be where it says so. vfork's child writes itself, for its parent sleeps, and so does one whose parent has
 * been killed, or one that is traced: its tracer may have stopped the parent. */
static void learn_tid(struct thread *t)
{
	static const u64 a_millisecond[2] = {0, 1000000};
	u64 serial = t->is_told & ~(u64)TELLING, now;
	change_telling(t, serial | NOT_TOLD, serial | (process.traced ? TELLS_ITSELF : IS_WAITED_FOR));
	for (int i = 0; i < 1000; i++) {
		now = __atomic_load_n(&t->is_told, __ATOMIC_SEQ_CST) & TELLING;
		if (now != IS_WAITED_FOR && now != IS_BEING_TOLD)
			break;
		sys4(NR_futex, &t->is_told, FUTEX_WAIT_PRIVATE, (u32)(serial | now), a_millisecond);
	}
	if (__atomic_load_n(&t->is_told, __ATOMIC_SEQ_CST) != (serial | TOLD))
		user_copy((void *)t->parent_tid, &t->tid, 4);
}

/* Tell of a new task. `serial`: of its area, which may be another task's by now. */
static void tell(struct thread *new, const struct clone_request *request, int tid, int pidfd, u64 serial)
{
	if (request->flags & CLONE_PIDFD)
		user_copy((void *)request->pidfd, &pidfd, 4);
	if (!(request->flags & CLONE_PARENT_SETTID) || request->flags & CLONE_VFORK)
		return;
	if (!change_telling(new, serial | NOT_TOLD, serial | IS_BEING_TOLD) &&
	    !change_telling(new, serial | IS_WAITED_FOR, serial | IS_BEING_TOLD))
		return;
	user_copy((void *)request->ptid, &tid, 4);
	if (change_telling(new, serial | IS_BEING_TOLD, serial | TOLD))
		sys3(NR_futex, &new->is_told, FUTEX_WAKE_PRIVATE, 1);
}

/* A task in this address space begins: a thread, or vfork's child, which borrows the memory until it execs or exits, or
 * a process that stays. */
static void begin(struct thread *t, u64 tid, u64 frame)
{
	t->tid = sys0(NR_gettid);
	attach(t, NATIVE_THREAD, tid ? (u64)t->tid : 0, t->token);
	if (t->clear_sighand)
		clear_handlers();
	set_altstack(t);
	if (t->parent_tid)
		learn_tid(t);
	if (t->child_tid)
		user_copy((void *)t->child_tid, &t->tid, 4);
	t->saved = &((struct frame *)frame)->uc;
	if (t->stop_at_exit)
		stop_at_exit(t, t->saved);
	begin_with_frame(frame + 8);
}

static void thread_begin(u64 frame)
{
	begin(this_thread(), 1, frame);
}

static void sharer_begin(u64 frame)
{
	begin(this_thread(), 0, frame);
}

/* Make an area in which a task begins where this one is, on its own stack, with 0 as the call's result. */
static struct thread *new_thread(struct thread *t, struct ucontext *uc, const struct clone_request *request, u64 **start)
{
	struct thread *new = thread_area();
	u64 flags = request->flags;
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
	if (request->stack)
		frame->uc.mc.rsp = request->stack;
	frame->uc.stack = (struct stack){STACK_START(new), 0, 0, STACK_BYTES};
	reset_altstack(new);
	if (flags & CLONE_VFORK)
		new->altstack = t->altstack;
	new->is_borrower = !(flags & CLONE_FILES);
	new->is_sharer = !(flags & CLONE_THREAD);
	new->is_brief = !!(flags & CLONE_VFORK);
	new->masked = t->masked;
	drop_all_pending(new);
	new->mask = uc->sigmask;
	new->is_killable = 0;
	new->pkru = t->pkru;
	new->clear_tid = flags & CLONE_CHILD_CLEARTID ? request->ctid : 0;
	new->clear_sighand = flags & CLONE_CLEAR_SIGHAND;
	new->token = 0;
	new->mapping = 0;
	new->stop_at_exit = new->is_traced_by_exec = 0;
	new->ring = 0;
	new->advances = 0;
	new->actions = t->actions;
	*start = (u64 *)((u64)frame - 64);
	**start = (u64)frame;
	new->is_told = __atomic_add_fetch(&last_serial, TELLING + 1, __ATOMIC_SEQ_CST) | (flags & CLONE_VFORK ? TELLS_ITSELF : NOT_TOLD);
	new->parent_tid = flags & CLONE_PARENT_SETTID ? request->ptid : 0;
	new->child_tid = flags & CLONE_CHILD_SETTID ? request->ctid : 0;
	return new;
}

/* As in host_fork(); where the host is to say that the task has ended it must know itself. */
static long host_clone(const struct clone_request *request, u64 *start, void (*function)(u64), int *pidfd)
{
	u64 flags = request->flags & ~(CLONE_PARENT_SETTID | CLONE_CHILD_SETTID | CLONE_CLEAR_SIGHAND);
	if (!request->clone3)
		return clone_on(flags | request->exit_signal, (u64)start, (u64)pidfd, request->ctid, request->tls, function);
	struct clone3_args args = *request->clone3;
	args.flags = flags;
	args.pidfd = (u64)pidfd;
	args.parent_tid = 0;
	args.stack_size = 16;
	args.stack = (u64)start - args.stack_size;
	return clone3_on(&args, sizeof args, function);
}

long do_thread(struct thread *t, struct ucontext *uc, const struct clone_request *request)
{
	u64 *start;
	int pidfd = -1;
	if (request->flags & CLONE_PIDFD && touch(request->pidfd, 4, 1))
		return -EFAULT;
	int conn = new_connection(t);
	struct thread *new = conn < 0 ? 0 : new_thread(t, uc, request, &start);
	if (!new) {
		sys1(NR_close, conn);
		return -EAGAIN;
	}
	new->conn = conn;
	u64 serial = new->is_told & ~(u64)TELLING;
	long tid = host_clone(request, start, thread_begin, &pidfd);
	if (tid >= 0)
		tell(new, request, tid, pidfd, serial);
	if (tid < 0 || !(request->flags & CLONE_FILES))
		sys1(NR_close, conn);
	if (tid < 0)
		free_area(new);
	return tid;
}

long do_share(struct thread *t, struct ucontext *uc, const struct clone_request *request)
{
	struct kernel_sigaction own[65];
	u64 *start, token, flags = request->flags;
	int conn, pidfd = -1;
	if (flags & CLONE_PIDFD && touch(request->pidfd, 4, 1))
		return -EFAULT;
	long ret = prepare_child(t, CLONE_SHARE, &conn, &token);
	if (ret)
		return ret;
	struct thread *new = new_thread(t, uc, request, &start);
	if (!new) {
		cancel_child(t, conn, token);
		return -EAGAIN;
	}
	__atomic_fetch_add(&process.sharers_begin, 1, __ATOMIC_SEQ_CST);
	dump_wait(t);
	process.has_sharers |= !(flags & CLONE_VFORK);
	new->token = token;
	new->conn = conn;
	u64 serial = new->is_told & ~(u64)TELLING;
	/* The other threads go on while vfork's child has other handlers. */
	if (flags & CLONE_VFORK && !(flags & CLONE_SIGHAND))
		new->actions = memcpy(own, actions(), sizeof own);
	long pid = host_clone(request, start, sharer_begin, &pidfd);
	__atomic_fetch_sub(&process.sharers_begin, 1, __ATOMIC_SEQ_CST);
	if (pid < 0) {
		cancel_child(t, conn, token);
	} else {
		tell(new, request, pid, pidfd, serial);
		ring_name_child(t, token, pid);
		t->left_child = flags & CLONE_VFORK ? pid : 0;
		if (!(flags & CLONE_FILES))
			sys1(NR_close, conn);
	}
	if (pid < 0 || flags & CLONE_VFORK) {
		free_area(new);	/* the child is through with this memory */
	}
	return pid;
}
