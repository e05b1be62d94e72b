/* The stops of a tracee, as the host tells them: which of them the tracer sees, and what becomes of the others.
 *
 * | the host's stop                                   | what is done                                                       |
 * |---------------------------------------------------|--------------------------------------------------------------------|
 * | SIGSYS of a call that the filter traps            | goes on, into the stub                                             |
 * | SIGSEGV, SIGBUS as the processor made it          | goes on: kerneld settles it, or the stub sends what the program    |
 * |                                                   | is to get, marked MARK_FAULT, as it leaves                         |
 * | a signal in the program                           | shown                                                              |
 * | a signal in the gate, which interrupts the call   | shown, and the registers are as if the program had made the call   |
 * | any other signal in the gate or the stub          | deferred until the tracee leaves the stub                          |
 * | MARK_EXIT: the tracee has left its stub           | shown as the end of the call, an execve, a step; or deferred       |
 * |                                                   | signals come again                                                 |
 * | the beginning of a call                           | shown                                                              |
 * | fork, vfork, clone, exit                          | shown: registers are those that the stub has saved                 |
 * | execve                                            | shown when the new program begins                                  |
 */
#include "trace.h"

#define SYS_SECCOMP 1
#define SI_TKILL -6
#define TRAP_TRACE 2
#define CLD_EXITED 1

int show(struct tracee *tracee, enum stop_kind kind, int status)
{
	tracee->kind = kind;
	tracee->status = status << 8 | 0x7f;
	tracee->is_syscall_end = 0;
	return 1;
}

/* Show the beginning or the end of a call. */
int show_call(struct tracee *tracee, enum stop_kind kind)
{
	show(tracee, kind, tracee->options & OPTION_SYSGOOD ? SYSCALL_STOP : SIGTRAP);
	tracee->is_syscall_end = kind != CALL;
	return 1;
}

static int show_signal(struct tracee *tracee, const struct siginfo *info)
{
	tracee->info = *info;
	if (info->err == MARK_FAULT)
		tracee->info.err = 0;
	return show(tracee, SIGNAL, info->signo);
}

int stands_in_stub(const struct tracee *tracee)
{
	struct user_regs regs;
	return !host_ptrace(PTRACE_GETREGS, tracee, 0, &regs) && zone_of(regs.rip) == IN_STUB;
}

/* Have the tracee go on until it leaves its stub. `how`: what of thread.stop_at_exit. */
int run_in_stub(struct tracee *tracee, u64 how, int signo)
{
	u64 area = area_of(tracee);
	if (area)
		poke(tracee, area + __builtin_offsetof(struct thread, stop_at_exit), how);
	if (tracee->dr7)
		host_ptrace(PTRACE_POKEUSER, tracee, AT_DR7, 0);
	/* A new program whose stub has no thread yet stops as it begins, as process.traced says. */
	tracee->is_leaving = area || stands_in_stub(tracee);
	host_ptrace(PTRACE_CONT, tracee, 0, (void *)(long)signo);
	return 0;
}

/* The tracee comes into its stub from the program. */
static int enter_stub(struct tracee *tracee, int is_fault, int signo)
{
	tracee->is_in_fault = is_fault;
	if (tracee->mode != CONT || tracee->dr7 || tracee->is_in_call)
		return run_in_stub(tracee, STOP_IN_PROGRAM, signo);
	host_ptrace(PTRACE_CONT, tracee, 0, (void *)(long)signo);
	return 0;
}

static int pass_on(struct tracee *tracee, int signo)
{
	host_ptrace(PTRACE_CONT, tracee, 0, (void *)(long)signo);
	return 0;
}

/* A signal that is for the program. */
static int take_signal(struct tracee *tracee, struct siginfo *info, struct user_regs *regs, enum zone zone)
{
	if (zone == IN_GATE && leave_gate_for(tracee, regs))
		zone = IN_PROGRAM;
	if (zone != IN_PROGRAM || tracee->is_leaving) {
		defer(tracee, info);
		return zone == IN_PROGRAM ? pass_on(tracee, 0) : run_in_stub(tracee, STOP_ANYWHERE, 0);
	}
	take_deferred(tracee, info);
	if (tracee->is_in_call && tracee->mode == SYSCALL) {
		/* It has interrupted the call, whose end is seen first. */
		defer(tracee, info);
		return show_call(tracee, HELD);
	}
	return show_signal(tracee, info);
}

/* A signal of a step, or of a breakpoint of the processor, in the stub: it is not of the program. */
static int skip_trap(struct tracee *tracee)
{
	if (tracee->is_leaving)
		return pass_on(tracee, 0);
	tracee->is_in_fault = 0;
	return run_in_stub(tracee, STOP_IN_PROGRAM, 0);
}

static int is_kick(struct tracee *tracee, const struct siginfo *info)
{
	return info->signo == SIGSYS && info->code == SI_TKILL && area_of(tracee) &&
	       (u32)peek(tracee, tracee->area + __builtin_offsetof(struct thread, is_kicked));
}

/* At an execve the agent of the program before ends. To the host it is a child as any then. The stub may have waited for it. */
static int is_of_agent(const struct tracee *tracee, const struct siginfo *info)
{
	return info->signo == SIGCHLD && info->code == CLD_EXITED && is_agent(info->fields[0], tracee->has_executed);
}

static int signal_stop(struct tracee *tracee, int signo)
{
	struct siginfo info;
	struct user_regs regs;
	long ret = host_ptrace(PTRACE_GETSIGINFO, tracee, 0, &info);
	if (host_ptrace(PTRACE_GETREGS, tracee, 0, &regs))
		return 0;	/* it has been killed */
	enum zone zone = zone_of(regs.rip);
	int is_forced = !ret && info.code > 0;
	if (ret == -EINVAL) {
		if (zone == IN_GATE)
			leave_gate_for(tracee, &regs);
		return show(tracee, GROUP, signo);
	}
	if (ret)
		return 0;
	if (info.err == MARK_EXIT && signo == SIGSYS)
		return at_exit_of_stub(tracee, &regs, zone);
	if (is_of_agent(tracee, &info))
		return pass_on(tracee, 0);
	if (info.err == MARK_DEFAULT || is_kick(tracee, &info))
		return pass_on(tracee, signo);
	if (info.err == MARK_FAULT && zone == IN_PROGRAM) {
		has_left_stub(tracee);
		return take_signal(tracee, &info, &regs, zone);
	}
	if (signo == SIGSYS && info.code == SYS_SECCOMP)
		return enter_stub(tracee, 0, signo);
	if (is_forced && (signo == SIGSEGV || signo == SIGBUS))
		return zone == IN_PROGRAM ? enter_stub(tracee, 1, signo) : pass_on(tracee, signo);
	if (is_forced && signo == SIGTRAP && (tracee->mode == STEP || tracee->dr7) &&
	    (zone != IN_PROGRAM || (tracee->is_leaving && info.code <= TRAP_TRACE)))
		return skip_trap(tracee);
	return take_signal(tracee, &info, &regs, zone);
}

/* A stop by PTRACE_INTERRUPT, of a child that begins, or of the whole process. */
static int event_stop(struct tracee *tracee, int signo)
{
	struct user_regs regs;
	if (host_ptrace(PTRACE_GETREGS, tracee, 0, &regs))
		return 0;
	enum zone zone = zone_of(regs.rip);
	if (zone == IN_GATE && leave_gate_for(tracee, &regs))
		zone = IN_PROGRAM;
	if (zone != IN_PROGRAM && signo == SIGTRAP) {
		tracee->is_interrupted = 1;
		return run_in_stub(tracee, STOP_ANYWHERE, 0);
	}
	if (tracee->is_leaving && signo == SIGTRAP) {
		tracee->is_interrupted = 1;
		return pass_on(tracee, 0);
	}
	return show(tracee, GROUP, EVENT_STOP << 8 | signo);
}

static int syscall_stop(struct tracee *tracee)
{
	struct user_regs regs;
	if (host_ptrace(PTRACE_GETREGS, tracee, 0, &regs))
		return 0;
	int is_restarted = zone_of(regs.rip) == IN_GATE && (long)regs.rax == -ENOSYS;
	if (zone_of(regs.rip) != IN_PROGRAM && !is_restarted) {
		/* of its stub: a handler of the program is about to begin */
		tracee->is_in_fault = 0;
		return run_in_stub(tracee, STOP_IN_PROGRAM, 0);
	}
	tracee->is_in_call = !tracee->is_in_call;
	return show_call(tracee, CALL);
}

/* Note the new child of a tracee, which the host has made a tracee too. */
static void note_child(struct thread *t, struct tracee *parent)
{
	u64 tid = 0;
	host_ptrace(PTRACE_GETEVENTMSG, parent, 0, &tid);
	struct tracee *child = find_tracee(t, tid);
	if (child)
		inherit(child, parent);
	else
		new_tracee(t, tid, parent);
}

/* An execve ends the other threads of a process, and nobody is told. The thread that made it has the first one's number now.
 * Source: Linux v6.8 fs/exec.c:de_thread(). */
static void forget_threads(struct thread *t, struct tracee *tracee)
{
	for (struct tracee *other = 0; (other = next_tracee(t, other));) {
		if (other != tracee && (u64)other->tid == tracee->message) {
			tracee->mode = other->mode;
			tracee->is_in_call = other->is_in_call;
			tracee->nr = other->nr;
		}
		if (other != tracee && !process_of(other->tid))
			drop_tracee(other);
	}
}

static int exec_event(struct thread *t, struct tracee *tracee)
{
	host_ptrace(PTRACE_GETEVENTMSG, tracee, 0, &tracee->message);
	forget_threads(t, tracee);
	tracee->kind = RUNS;	/* a stop of the first thread, which another's execve has ended, is over */
	tracee->has_executed = 1;
	tracee->area = 0;
	tracee->dr7 = 0;
	poke(tracee, (u64)&process.traced, 1);
	return run_in_stub(tracee, STOP_ANYWHERE, 0);
}

/* The host has stopped a tracee. 1 where the tracer is to see that, as `status` of the tracee says; 0 where it goes on. */
int take_stop(struct thread *t, struct tracee *tracee, int status)
{
	int signo = status >> 8 & 0xff, event = status >> 16 & 0xff;
	if (tracee->kind != RUNS && event != EVENT_EXEC)
		return 1;
	if (!tracee->is_known) {
		tracee->is_known = 1;
		host_ptrace(PTRACE_SETOPTIONS, tracee, 0, (void *)(u64)(tracee->options | OUR_OPTIONS));
		poke(tracee, (u64)&process.traced, 1);
	}
	switch (event) {
	case EVENT_EXEC:
		return exec_event(t, tracee);
	case EVENT_FORK: case EVENT_VFORK: case EVENT_CLONE:
		note_child(t, tracee);
		/* fall through */
	case EVENT_VFORK_DONE: case EVENT_EXIT:
		return show(tracee, EVENT, event << 8 | SIGTRAP);
	case EVENT_STOP:
		return event_stop(tracee, signo);
	}
	return signo == SYSCALL_STOP ? syscall_stop(tracee) : signal_stop(tracee, signo);
}
