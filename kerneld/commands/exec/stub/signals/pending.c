/* Pending signals of those that the stub lives by (OURS). The host never blocks them, so it cannot keep them either: one that
 * comes while the program has it blocked, or while the stub works, is kept here. As on Linux there is one of each kind. */
#include "../native.h"

#define SIG_IGN 1

static struct siginfo *slot_of(struct thread *t, int signo)
{
	return &t->pending[signo == SIGSEGV ? 0 : signo == SIGBUS ? 1 : 2];
}

void keep_pending(struct thread *t, const struct siginfo *info)
{
	struct siginfo *slot = slot_of(t, info->signo);
	if (!slot->signo)
		*slot = *info;
}

void drop_pending(struct thread *t, int signo)
{
	if (BIT(signo) & OURS)
		slot_of(t, signo)->signo = 0;
}

void drop_all_pending(struct thread *t)
{
	memset(t->pending, 0, sizeof t->pending);
}

/* Take one that is in a set; 0 where there is none. */
static int take_pending(struct thread *t, u64 set, struct siginfo *info)
{
	for (int i = 0; i < NR_OURS; i++) {
		int signo = t->pending[i].signo;
		if (signo && set & BIT(signo)) {
			*info = t->pending[i];
			t->pending[i].signo = 0;
			return signo;
		}
	}
	return 0;
}

/* Have the handlers run of what is not blocked, as the program goes on. */
void deliver_pending(struct thread *t, struct ucontext *uc)
{
	struct siginfo info;
	while (take_pending(t, ~t->masked, &info)) {
		leave_gate(t, uc);
		deliver(t, uc, &info);
	}
}

/* Source: Linux v6.8 kernel/signal.c:do_sigpending(). */
long sys_sigpending(struct thread *t, const struct ucontext *uc, const u64 *args)
{
	u64 set = 0;
	if (args[1] > sizeof set)
		return -EINVAL;
	sys2(NR_rt_sigpending, &set, sizeof set);
	set &= uc->sigmask;
	for (int i = 0; i < NR_OURS; i++)
		if (t->pending[i].signo)
			set |= BIT(t->pending[i].signo) & t->masked;
	return user_copy((void *)args[0], &set, args[1]) ? -EFAULT : 0;
}

/* rt_sigtimedwait() of what is kept here: 1 and a result, or 0: the host waits. */
int sigtimedwait_call(struct thread *t, const u64 *args, long *ret)
{
	struct siginfo info;
	u64 set;
	if (args[3] != sizeof set || user_copy(&set, (void *)args[0], sizeof set) || !take_pending(t, set, &info))
		return 0;
	*ret = args[1] && user_copy((void *)args[1], &info, sizeof info) ? -EFAULT : info.signo;
	return 1;
}

/* rt_sigqueueinfo() and rt_tgsigqueueinfo(): a program may send itself a signal that looks like the processor's, often the
 * one that it is handling. It must not come to the stub as a fault. 1 and a result, or 0: the host sends it. */
int sigqueue_call(struct thread *t, const u64 *args, long nr, long *ret)
{
	struct siginfo info;
	int is_tasks = nr == NR_rt_tgsigqueueinfo;
	u64 signo = args[1 + is_tasks];
	if (signo < 1 || signo > 64 || !(BIT(signo) & OURS) || (int)args[0] != sys0(NR_getpid) || (is_tasks && (int)args[1] != sys0(NR_gettid)))
		return 0;
	if (user_copy(&info, (void *)args[2 + is_tasks], sizeof info) || info.code <= 0)
		return 0;
	info.signo = signo;
	*ret = 0;
	if (!(t->masked & BIT(signo)) && show_fault(t, &info))
		return 1;
	if (actions()[signo].handler != SIG_IGN || t->masked & BIT(signo))
		keep_pending(t, &info);
	return 1;
}
