/* A call with a time, which a signal has interrupted that is not for the program: it goes on with the time that is left. */
#include "../native.h"

#define NR_clock_gettime 228
#define CLOCK_MONOTONIC 1
#define NR_clock_nanosleep 230
#define TIMER_ABSTIME 1
#define FUTEX_WAIT 0
#define FUTEX_COMMAND(op) ((op) & 0x7f)
#define SECOND 1000000000L
#define MILLISECOND 1000000L

/* Where a call is told its time: in a timespec, in one into which the host writes what is left, in milliseconds. */
enum how { NOT_TIMED, SPEC, LEFT, MILLISECONDS };
static const struct timed { uint16_t nr; unsigned char argument, how; } timed[] = {
	{7 /* poll */, 2, MILLISECONDS}, {232 /* epoll_wait */, 3, MILLISECONDS}, {281 /* epoll_pwait */, 3, MILLISECONDS},
	{23 /* select */, 4, LEFT}, {270 /* pselect6 */, 4, LEFT}, {271 /* ppoll */, 2, LEFT}, {35 /* nanosleep */, 0, SPEC},
	{NR_clock_nanosleep, 2, SPEC}, {128 /* rt_sigtimedwait */, 2, SPEC}, {220 /* semtimedop */, 3, SPEC}, {NR_futex, 3, SPEC},
	{441 /* epoll_pwait2 */, 3, SPEC},
};

long now(void)
{
	long time[2] = {0};
	sys2(NR_clock_gettime, CLOCK_MONOTONIC, time);
	return time[0] * SECOND + time[1];
}

static int is_relative(long nr, const u64 *args)
{
	return nr == NR_clock_nanosleep ? !(args[1] & TIMER_ABSTIME) : nr != NR_futex || FUTEX_COMMAND(args[1]) == FUTEX_WAIT;
}

/* Have the gate make its call again, on the same copies. 0 if it is not one with a time. */
int go_on_with_rest(struct thread *t, struct ucontext *uc)
{
	u64 *registers[] = {&uc->mc.rdi, &uc->mc.rsi, &uc->mc.rdx, &uc->mc.r10, &uc->mc.r8, &uc->mc.r9};
	const struct timed *call = timed, *end = timed + sizeof timed / sizeof *timed;
	while (call < end && call->nr != t->bounce.nr)
		call++;
	if (!t->bounce.is_copied || !t->bounce.began || uc->mc.rip != (u64)gate_of(t) + SYSCALL_BYTES || call == end)
		return 0;
	long passed = now() - t->bounce.began, *spec = (long *)*registers[call->argument];
	u64 *word = registers[call->argument];
	t->bounce.began += passed;
	if (call->how == MILLISECONDS && (int)*word > 0) {
		*word = (int)*word * MILLISECOND > passed ? ((int)*word * MILLISECOND - passed) / MILLISECOND : 0;
	} else if (call->how == SPEC && spec && spec != (long *)t->bounce.args[call->argument] && is_relative(call->nr, t->bounce.args)) {
		long rest = spec[0] < SECOND ? spec[0] * SECOND + spec[1] - passed : SECOND * SECOND / 2;
		spec[0] = rest > 0 ? rest / SECOND : 0;
		spec[1] = rest > 0 ? rest % SECOND : 0;
	}
	uc->mc.rax = t->bounce.nr;
	uc->mc.rip = gate_of(t);
	return 1;
}
