/* clone() and clone3(): what a program asks for, in one form. What Linux checks itself is left to the host, which makes
 * the task; of clone3() the stub reads the structure, and so has its checks. */
#include "../native.h"
#include "clone.h"

#define E2BIG_OVER PAGE_BYTES
#define SIZE_VER0 64
#define CSIGNAL 0xffUL
#define MAX_SIGNAL 64
#define CLONE_DETACHED 0x400000UL
#define CLONE_NEWTIME 0x80UL
#define LEGACY_FLAGS 0xffffffffUL
#define MAX_FD 0x7fffffffUL

static long make_task(struct thread *t, struct ucontext *uc, struct clone_request *request)
{
	u64 flags = request->flags;
	if ((flags & A_THREAD) == A_THREAD)
		return do_thread(t, uc, request);
	if (flags & CLONE_THREAD || (flags & (CLONE_SIGHAND | CLONE_VM)) == CLONE_SIGHAND)
		return -EINVAL;
	process.has_odd_children |= request->exit_signal != SIGCHLD;
	return flags & CLONE_VM ? do_share(t, uc, request) : do_fork(t, uc, request);
}

/* args: stack, ptid, ctid, tls. A pidfd goes where ptid points. */
long sys_clone(struct thread *t, struct ucontext *uc, u64 flags, const u64 *args)
{
	struct clone_request request = {
		.flags = flags & LEGACY_FLAGS & ~CSIGNAL, .exit_signal = flags & CSIGNAL, .stack = args[0], .ptid = args[1],
		.ctid = args[2], .tls = args[3], .pidfd = args[1],
	};
	return make_task(t, uc, &request);
}

/* Source: Linux v6.8 lib/usercopy.c: copy_struct_from_user(). */
static long copy_struct(void *to, u64 room, u64 at, u64 size)
{
	char byte;
	memset(to, 0, room);
	for (u64 i = room; i < size; i++) {
		if (user_copy(&byte, (void *)(at + i), 1))
			return -EFAULT;
		if (byte)
			return -E2BIG;
	}
	return user_copy(to, (void *)at, size < room ? size : room) ? -EFAULT : 0;
}

/* Source: Linux v6.8 kernel/fork.c: copy_clone_args_from_user(). */
static long take_arguments(struct clone3_args *args, u32 *set_tid, u64 at, u64 size)
{
	if (size > E2BIG_OVER)
		return -E2BIG;
	if (size < SIZE_VER0)
		return -EINVAL;
	long ret = copy_struct(args, sizeof *args, at, size);
	if (ret)
		return ret;
	if (args->set_tid_size > MAX_SET_TID || !args->set_tid != !args->set_tid_size)
		return -EINVAL;
	if (args->exit_signal & ~CSIGNAL || args->exit_signal > MAX_SIGNAL)
		return -EINVAL;
	if (args->flags & CLONE_INTO_CGROUP && (args->cgroup > MAX_FD || size < sizeof *args))
		return -EINVAL;
	return user_copy(set_tid, (void *)args->set_tid, args->set_tid_size * sizeof *set_tid) ? -EFAULT : 0;
}

/* Source: Linux v6.8 kernel/fork.c: clone3_args_valid() and clone3_stack_valid(). */
static int are_valid(const struct clone3_args *args)
{
	if (args->flags & ~(LEGACY_FLAGS | CLONE_CLEAR_SIGHAND | CLONE_INTO_CGROUP))
		return 0;
	if (args->flags & (CLONE_DETACHED | (CSIGNAL & ~CLONE_NEWTIME)))
		return 0;
	if ((args->flags & (CLONE_SIGHAND | CLONE_CLEAR_SIGHAND)) == (CLONE_SIGHAND | CLONE_CLEAR_SIGHAND))
		return 0;
	if (args->flags & (CLONE_THREAD | CLONE_PARENT) && args->exit_signal)
		return 0;
	if (!args->stack != !args->stack_size)
		return 0;
	return args->stack <= USER_END && args->stack_size <= USER_END - args->stack;
}

long sys_clone3(struct thread *t, struct ucontext *uc, u64 at, u64 size)
{
	struct clone3_args args;
	u32 set_tid[MAX_SET_TID];
	long ret = take_arguments(&args, set_tid, at, size);
	if (ret)
		return ret;
	if (!are_valid(&args))
		return -EINVAL;
	if ((args.flags & (CLONE_PIDFD | CLONE_PARENT_SETTID)) == (CLONE_PIDFD | CLONE_PARENT_SETTID) && args.pidfd == args.parent_tid)
		return -EINVAL;
	args.set_tid = args.set_tid ? (u64)set_tid : 0;
	struct clone_request request = {
		.flags = args.flags, .exit_signal = args.exit_signal, .stack = args.stack ? args.stack + args.stack_size : 0,
		.ptid = args.parent_tid, .ctid = args.child_tid, .tls = args.tls, .pidfd = args.pidfd, .clone3 = &args,
	};
	return make_task(t, uc, &request);
}
