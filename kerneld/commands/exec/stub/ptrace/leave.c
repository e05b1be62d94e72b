/* A tracee leaves its stub, or its gate, and how it goes on from a stop. */
#include "trace.h"

#define ERESTARTSYS 512
#define ERESTARTNOINTR 513
#define ERESTARTNOHAND 514
#define ERESTART_RESTARTBLOCK 516
#define TRAP_TRACE 2

#define AT(member) (area + __builtin_offsetof(struct thread, member))

/* The program goes on, and its hardware breakpoints work again. */
void has_left_stub(struct tracee *tracee)
{
	tracee->is_leaving = 0;
	if (tracee->dr7)
		host_ptrace(PTRACE_POKEUSER, tracee, AT_DR7, (void *)tracee->dr7);
}

/* Of a tracee that is in its gate: the registers as the program would have them behind its call. 1 if the call comes back to the
 * stub. */
int read_gate(const struct tracee *tracee, struct user_regs *regs)
{
	u64 area = area_by_registers(regs), gate = area - PAGE_BYTES, leads_to = peek(tracee, AT(gate_return)), args[6];
	int is_copied = (int)peek(tracee, AT(bounce.is_copied));
	for (int i = 0; is_copied && i < 6; i++)
		args[i] = peek(tracee, AT(bounce.args) + i * 8);
	if (is_copied) {
		regs->rdi = args[0], regs->rsi = args[1], regs->rdx = args[2];
		regs->r10 = args[3], regs->r8 = args[4], regs->r9 = args[5];
	}
	regs->rip = is_copied ? peek(tracee, AT(bounce.resume)) : leads_to;
	return is_copied && leads_to == gate + GATE_HLT;
}

static int is_restart(long result)
{
	return result == -ERESTARTSYS || result == -ERESTARTNOINTR || result == -ERESTARTNOHAND || result == -ERESTART_RESTARTBLOCK;
}

/* The tracee is in its gate. If its call has not been made, or does not come back to the stub, give it the registers that the
 * program would have: 1. If the stub has to end the call first: 0. A call that goes on with the rest of its time has to stay
 * where it is; only what the tracer reads is changed (registers.c). */
int leave_gate_for(struct tracee *tracee, struct user_regs *regs)
{
	u64 area = area_by_registers(regs), gate = area - PAGE_BYTES, rip = regs->rip;
	int is_interrupted = rip == gate + SYSCALL_BYTES && (long)regs->orig_rax >= 0 && is_restart(regs->rax);
	int comes_back = read_gate(tracee, regs);
	if (rip != gate && !is_interrupted && comes_back)
		return 0;
	if (rip == gate) {
		regs->orig_rax = peek(tracee, AT(bounce.nr));
		regs->rax = -ERESTARTNOINTR;
	}
	poke(tracee, AT(stop_at_exit), 0);
	if (!is_interrupted || (long)regs->rax != -ERESTART_RESTARTBLOCK)
		host_ptrace(PTRACE_SETREGS, tracee, 0, regs);
	has_left_stub(tracee);
	return 1;
}

/* A call in the gate goes on, and its end is to be seen: it comes back to the stub. */
static long go_on_in_gate(struct tracee *tracee, struct user_regs *regs)
{
	u64 area = area_by_registers(regs), gate = area - PAGE_BYTES, resume = peek(tracee, AT(gate_return));
	u64 args[6] = {regs->rdi, regs->rsi, regs->rdx, regs->r10, regs->r8, regs->r9};
	if (!(int)peek(tracee, AT(bounce.is_copied))) {
		poke(tracee, AT(bounce.resume), resume);
		for (int i = 0; i < 6; i++)
			poke(tracee, AT(bounce.args) + i * 8, args[i]);
		poke(tracee, AT(bounce.outs), 0);
		poke(tracee, AT(bounce.is_copied), 1);
	}
	poke(tracee, AT(gate_return), gate + GATE_HLT);
	return run_in_stub(tracee, STOP_IN_PROGRAM, 0);
}

/* Have the host let it go on, as the tracer wants. */
long resume_host(struct tracee *tracee, int signo)
{
	static const long requests[] = {[CONT] = PTRACE_CONT, [SYSCALL] = PTRACE_SYSCALL, [STEP] = PTRACE_SINGLESTEP};
	tracee->kind = RUNS;
	return host_ptrace(requests[tracee->mode], tracee, 0, (void *)(long)signo);
}

static int show_end_of_call(struct tracee *tracee, struct user_regs *regs)
{
	regs->orig_rax = tracee->nr;
	host_ptrace(PTRACE_SETREGS, tracee, 0, regs);
	return show_call(tracee, EXIT);
}

/* The program that it has executed begins. */
static int begin_program(struct tracee *tracee, struct user_regs *regs)
{
	tracee->has_executed = 0;
	if (tracee->options & OPTION_EXEC) {
		regs->orig_rax = NR_execve;
		regs->rax = -ENOSYS;
		host_ptrace(PTRACE_SETREGS, tracee, 0, regs);
		return show(tracee, EXIT, EVENT_EXEC << 8 | SIGTRAP);
	}
	if (!tracee->is_seized) {
		struct siginfo info = {.signo = SIGTRAP, .fields = {(u32)tracee->tid}};
		defer(tracee, &info);
	}
	return 0;
}

/* The tracee has left its stub, as it was asked to tell. */
int at_exit_of_stub(struct tracee *tracee, struct user_regs *regs, enum zone zone)
{
	has_left_stub(tracee);
	if (zone == IN_PROGRAM) {
		if (tracee->has_executed && begin_program(tracee, regs))
			return 1;
		if (tracee->is_in_call && tracee->mode == SYSCALL)
			return show_end_of_call(tracee, regs);
	}
	if (tracee->is_interrupted) {
		tracee->is_interrupted = 0;
		host_ptrace(PTRACE_INTERRUPT, tracee, 0, 0);
	}
	send_deferred(tracee);
	if (zone != IN_PROGRAM && (tracee->mode != CONT || tracee->dr7))
		return run_in_stub(tracee, STOP_IN_PROGRAM, 0);
	if (zone != IN_PROGRAM) {
		host_ptrace(PTRACE_CONT, tracee, 0, 0);
		return 0;
	}
	if (tracee->mode == STEP && !tracee->is_in_fault) {
		tracee->info = (struct siginfo){.signo = SIGTRAP, .code = TRAP_TRACE, .fields = {regs->rip}};
		return show(tracee, EXIT, SIGTRAP);
	}
	resume_host(tracee, 0);
	return 0;
}

/* The tracer leaves the event of an execve: the call has ended well. */
static void end_execve(struct tracee *tracee)
{
	struct user_regs regs;
	if (tracee->kind != EXIT || tracee->status >> 16 != EVENT_EXEC || host_ptrace(PTRACE_GETREGS, tracee, 0, &regs))
		return;
	regs.rax = 0;
	regs.orig_rax = -1;
	host_ptrace(PTRACE_SETREGS, tracee, 0, &regs);
}

/* Have it stop once more where it is, as when it leaves its stub. */
static long stop_again(struct tracee *tracee)
{
	struct siginfo info = {.signo = SIGSYS, .err = MARK_EXIT, .code = SI_QUEUE};
	sys4(NR_rt_tgsigqueueinfo, process_of(tracee->tid), tracee->tid, SIGSYS, &info);
	tracee->is_leaving = 1;
	return host_ptrace(PTRACE_CONT, tracee, 0, 0);
}

/* The tracer lets its tracee go on from the beginning of a call. */
static long go_into_call(struct tracee *tracee, int signo)
{
	struct user_regs regs = {0};
	host_ptrace(PTRACE_GETREGS, tracee, 0, &regs);
	tracee->nr = regs.orig_rax;
	if (tracee->mode == SYSCALL && zone_of(regs.rip) == IN_GATE)
		return go_on_in_gate(tracee, &regs);
	if (tracee->mode == SYSCALL && !is_free_call(tracee->nr))
		return host_ptrace(PTRACE_CONT, tracee, 0, (void *)(long)signo);
	tracee->is_in_call = tracee->mode == SYSCALL;
	return resume_host(tracee, signo);
}

/* The tracer lets its tracee go on. 0 or -errno. */
long let_go(struct tracee *tracee, enum mode mode, int signo)
{
	enum stop_kind kind = tracee->kind;
	int is_end = tracee->is_syscall_end;
	if (signo < 0 || signo > 64)
		return -EIO;
	end_execve(tracee);
	int leaves_stub = (kind == EVENT || kind == GROUP) && (mode != CONT || tracee->dr7) && stands_in_stub(tracee);
	tracee->mode = mode;
	tracee->kind = RUNS;
	if (kind == CALL && tracee->is_in_call)
		return go_into_call(tracee, signo);
	if (kind == EVENT) {
		/* in the middle of a call */
		tracee->is_in_call = mode == SYSCALL;
		tracee->is_in_fault = 0;
		return leaves_stub ? run_in_stub(tracee, STOP_IN_PROGRAM, 0) : resume_host(tracee, 0);
	}
	if (kind == EXIT && !is_end && tracee->status >> 16 && tracee->is_in_call && mode == SYSCALL)
		return stop_again(tracee);	/* behind the event of an execve comes the end of this call */
	tracee->is_in_call = 0;
	send_deferred(tracee);
	if (leaves_stub)
		return run_in_stub(tracee, STOP_IN_PROGRAM, 0);
	return resume_host(tracee, kind == HELD || (kind == EXIT && !is_end) ? 0 : signo);
}

/* The tracer leaves its tracee. 0 or -errno. */
long detach(struct tracee *tracee, int signo)
{
	int is_passed = tracee->kind == SIGNAL || tracee->kind == CALL || (tracee->kind == EXIT && tracee->is_syscall_end);
	if (signo < 0 || signo > 64)
		return -EIO;
	end_execve(tracee);
	send_deferred(tracee);
	long ret = host_ptrace(PTRACE_DETACH, tracee, 0, (void *)(long)(is_passed ? signo : 0));
	if (!ret)
		drop_tracee(tracee);
	return ret;
}
