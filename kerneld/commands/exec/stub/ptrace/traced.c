/* What the stub of a program does for the one that traces it: it stops where the program's registers are right. The tracer's
 * stub sees these stops, and what they are for, by a mark in the signal. See stops.c. */
#include "../native.h"

/* Queue a signal that comes as this handler returns. No access to the program's memory may follow. */
static void queue(struct thread *t, const struct siginfo *info)
{
	u64 all = ~0UL;
	t->has_queued = 1;
	sys4(NR_rt_sigprocmask, 2, &all, 0, 8);
	sys4(NR_rt_tgsigqueueinfo, sys0(NR_getpid), t->tid, info->signo, info);
}

/* Stop as this handler returns, if the tracer wants that. `uc` is what it returns to. */
void stop_at_exit(struct thread *t, const struct ucontext *uc)
{
	struct siginfo info = {.signo = SIGSYS, .err = MARK_EXIT, .code = SI_QUEUE};
	int is_gate = zone_of(uc->mc.rip) == IN_GATE;
	if (!t->stop_at_exit || uc != t->saved || uc->sigmask & BIT(SIGSYS) || (is_gate && t->stop_at_exit != STOP_ANYWHERE))
		return;
	t->stop_at_exit = 0;
	queue(t, &info);
}

/* A fault of the program, or a signal like one that it sends to itself, is for itself: 1 if it comes as a signal when this handler returns, so that its tracer sees it. */
int show_fault(struct thread *t, const struct siginfo *info)
{
	struct siginfo shown = *info;
	if (!process.traced)
		return 0;
	shown.err = MARK_FAULT;
	t->stop_at_exit = 0;
	queue(t, &shown);
	return 1;
}

/* A marked signal has come to its end. 0 for another. */
int take_mark(struct thread *t, struct ucontext *uc, struct siginfo *info)
{
	if (info->err == MARK_FAULT && BIT(info->signo) & OURS) {
		/* The tracer has seen it. */
		info->err = 0;
		deliver(t, uc, info);
		return 1;
	}
	if (info->signo != SIGSYS || info->code != SI_QUEUE || (info->err != MARK_EXIT && info->err != MARK_TRACER))
		return 0;
	if (info->err == MARK_TRACER)
		become_tracer();
	undo_interruption(t, uc);
	return 1;
}
