/* rt_sigaction(), rt_sigprocmask() and sigaltstack(): the program's handlers, what it blocks, and where its handlers run. */
#include "../native.h"

#define SIG_IGN 1
#define MINSIGSTKSZ 2048

static long sys_sigaction(struct thread *t, const u64 *args)
{
	int signo = args[0];
	struct kernel_sigaction action;
	if (args[3] != 8 || signo < 1 || signo > 64 || (args[1] && (signo == SIGKILL || signo == SIGSTOP)))
		return -EINVAL;
	if (args[1] && user_copy(&action, (void *)args[1], sizeof action))
		return -EFAULT;
	struct kernel_sigaction old = actions()[signo];
	if (args[1]) {
		action.mask &= ~(BIT(SIGKILL) | BIT(SIGSTOP));
		actions()[signo] = action;
		set_action(signo);
		if (action.handler == SIG_IGN)
			drop_pending(t, signo);
	}
	return args[2] && user_copy((void *)args[2], &old, sizeof old) ? -EFAULT : 0;
}

static long sys_sigprocmask(struct thread *t, struct ucontext *uc, const u64 *args)
{
	u64 old = uc->sigmask | t->masked, set, mask;
	if (args[3] != 8)
		return -EINVAL;
	if (args[1]) {
		if (user_copy(&set, (void *)args[1], 8))
			return -EFAULT;
		if (args[0] > 2)
			return -EINVAL;
		mask = args[0] == 0 ? old | set : args[0] == 1 ? old & ~set : set;
		mask &= ~(BIT(SIGKILL) | BIT(SIGSTOP));
		t->masked = mask & OURS;
		uc->sigmask = mask & ~OURS;
	}
	return args[2] && user_copy((void *)args[2], &old, 8) ? -EFAULT : 0;
}

/* Source: Linux v6.8 include/linux/sched/signal.h:on_sig_stack(), sas_ss_reset(). */
int is_on_altstack(const struct thread *t, u64 sp)
{
	const struct stack *stack = &t->altstack;
	return !(stack->flags & SS_AUTODISARM) && sp > stack->sp && sp - stack->sp <= stack->size;
}

void reset_altstack(struct thread *t)
{
	t->altstack = (struct stack){.flags = SS_DISABLE};
}

/* Source: Linux v6.8 kernel/signal.c:do_sigaltstack(). */
long change_altstack(struct thread *t, u64 sp, struct stack new)
{
	int mode = new.flags & ~SS_AUTODISARM;
	if (is_on_altstack(t, sp))
		return -EPERM;
	if (mode != 0 && mode != SS_DISABLE && mode != SS_ONSTACK)
		return -EINVAL;
	if (mode == SS_DISABLE)
		new.sp = new.size = 0;
	else if (new.size < MINSIGSTKSZ)
		return -ENOMEM;
	t->altstack = new;
	return 0;
}

static long sys_sigaltstack(struct thread *t, struct ucontext *uc, const u64 *args)
{
	struct stack old = t->altstack, new;
	long ret = 0;
	old.flags &= SS_AUTODISARM;
	old.flags |= !old.size ? SS_DISABLE : is_on_altstack(t, uc->mc.rsp) ? SS_ONSTACK : 0;
	if (args[0])
		ret = user_copy(&new, (void *)args[0], sizeof new) ? -EFAULT : change_altstack(t, uc->mc.rsp, new);
	if (ret)
		return ret;
	return args[1] && user_copy((void *)args[1], &old, sizeof old) ? -EFAULT : 0;
}

/* The calls about signals. 1 and a result, or 0: they are the host's. */
int signal_call(struct thread *t, struct ucontext *uc, const u64 *args, long nr, long *ret)
{
	switch (nr) {
	case NR_rt_sigaction:
		*ret = sys_sigaction(t, args);
		return 1;
	case NR_rt_sigprocmask:
		*ret = sys_sigprocmask(t, uc, args);
		return 1;
	case NR_rt_sigpending:
		*ret = sys_sigpending(t, uc, args);
		return 1;
	case NR_rt_sigtimedwait:
		return sigtimedwait_call(t, args, ret);
	case NR_rt_sigqueueinfo: case NR_rt_tgsigqueueinfo:
		return sigqueue_call(t, args, nr, ret);
	case NR_sigaltstack:
		*ret = sys_sigaltstack(t, uc, args);
		return 1;
	}
	return 0;
}
