/* Signals: every handler that the host knows of is the stub's, on the stub's stack; the program's own frame is built by
 * the stub, after its stack's pages have come. What is virtual: the handlers, the alternate stack, and the blocking of
 * SIGSEGV, SIGBUS and SIGSYS. The rest of the mask, pending signals and default actions are the host's. */
#include "../native.h"

#define SIG_DFL 0
#define SIG_IGN 1
#define FXSAVE_SW_BYTES 464
#define FXSAVE_MXCSR 24
#define FXSAVE_MXCSR_MASK 28
#define FXSAVE_REGISTERS 32
#define FXSAVE_REGISTERS_BYTES 384
#define INIT_FCW 0x37f
#define INIT_MXCSR 0x1f80
#define FP_XSTATE_MAGIC1 0x46505853U
#define RED_ZONE 128
#define X86_PF_WRITE 2
#define X86_PF_INSTR 16
#define X86_TRAP_PF 14
#define SYS_SECCOMP 1
#define IGNORED_BY_DEFAULT (BIT(SIGCHLD) | BIT(18 /* SIGCONT */) | BIT(23 /* SIGURG */) | BIT(28 /* SIGWINCH */))
#define STOPS (BIT(20 /* SIGTSTP */) | BIT(21 /* SIGTTIN */) | BIT(22 /* SIGTTOU */))
#define DF_RF_TF 0x10500UL
#define SEGV_PKUERR 4
#define SI_KERNEL 128
/* What dumps core by default. Source: Linux v6.8 include/linux/signal.h: SIG_KERNEL_COREDUMP_MASK. */
#define DUMPS_CORE (OURS | BIT(3 /* SIGQUIT */) | BIT(SIGILL) | BIT(5 /* SIGTRAP */) | BIT(6 /* SIGABRT */) | BIT(8 /* SIGFPE */) | \
		    BIT(24 /* SIGXCPU */) | BIT(25 /* SIGXFSZ */))

struct frame { u64 restorer; struct ucontext uc; struct siginfo info; };
extern void stub_restorer(void);

static void set_host_action(int signo, u64 handler, u64 flags)
{
	struct kernel_sigaction action = {handler, flags | SA_RESTORER, (u64)stub_restorer, process.stub_mask};
	sys4(NR_rt_sigaction, signo, &action, 0, 8);
}

static int is_init(void)
{
	return sys0(NR_getpid) == 1;
}

/* Whether the host is to tell the stub of a signal: a core dump has to be prepared. The first process of a PID namespace does
 * not end by a signal of its own namespace, so it has none. Source: Linux v6.8 kernel/signal.c:sig_task_ignored(). */
int is_caught(int signo)
{
	u64 handler = actions()[signo].handler;
	return BIT(signo) & OURS || handler > SIG_IGN || (signo == SIGCHLD && process.is_tracer) || (handler == SIG_DFL && BIT(signo) & DUMPS_CORE && !is_init());
}

/* The flags of SIGCHLD in a tracer: the stub is told of stops, the program only of those that it wants. */
static u64 handler_of_tracer(const struct kernel_sigaction *action)
{
	u64 kept = action->flags & (SA_NOCLDWAIT | SA_RESTART);
	return action->handler > SIG_IGN ? kept : kept | SA_RESTART | (action->handler == SIG_IGN ? SA_NOCLDWAIT : 0);
}

/* The host's action for a signal, by the program's. */
static void install(int signo)
{
	const struct kernel_sigaction *action = &actions()[signo];
	u64 kept = action->flags & (SA_NOCLDSTOP | SA_NOCLDWAIT | SA_RESTART);
	if (signo == SIGCHLD && process.is_tracer)
		kept = handler_of_tracer(action);
	if (BIT(signo) & OURS)
		set_host_action(signo, (u64)stub_handler, SA_SIGINFO | SA_ONSTACK | SA_NODEFER);
	else if (!is_caught(signo))
		set_host_action(signo, action->handler, kept);
	else
		set_host_action(signo, (u64)stub_handler, kept | SA_SIGINFO | SA_ONSTACK);
}

/* What is blocked while the stub's handlers run: all that the program does not ignore. The host drops what is ignored when
 * it is sent, but not what is blocked: it would wait, and interrupt another thread's call. 1 where that is new. */
static int find_stub_mask(void)
{
	u64 mask = ~OURS, before = process.stub_mask;
	for (int signo = 1; signo <= 64; signo++) {
		u64 handler = actions()[signo].handler;
		if (signo == SIGCHLD && process.is_tracer)
			continue;
		if (handler == SIG_IGN || (handler == SIG_DFL && BIT(signo) & IGNORED_BY_DEFAULT))
			mask &= ~BIT(signo);
	}
	process.stub_mask = mask;
	return mask != before;
}

static void install_all(void)
{
	for (int signo = 1; signo <= 64; signo++)
		if (is_caught(signo))
			install(signo);
}

/* Also as this process becomes a tracer: its stub is to be told of its tracees. */
void watch_children(void)
{
	find_stub_mask();
	install_all();
}

void install_handlers(void)
{
	for (int signo = 1; signo <= 64; signo++)
		sys4(NR_rt_sigaction, signo, 0, &actions()[signo], 8);
	watch_children();
}

/* A fork has made the first process of a PID namespace. */
void begin_as_init(void)
{
	for (int signo = 1; is_init() && signo <= 64; signo++)
		install(signo);
}

/* All handlers go; what is ignored stays ignored. Source: Linux v6.8 kernel/signal.c:flush_signal_handlers(). */
void clear_handlers(void)
{
	for (int signo = 1; signo <= 64; signo++) {
		struct kernel_sigaction *action = &actions()[signo];
		u64 handler = action->handler == SIG_IGN ? SIG_IGN : SIG_DFL;
		memset(action, 0, sizeof *action);
		action->handler = handler;
		if (!(BIT(signo) & OURS) && handler == SIG_DFL)
			install(signo);
	}
	if (find_stub_mask())
		install_all();
}

void set_altstack(struct thread *t)
{
	struct stack stack = {STACK_START(t), 0, 0, STACK_BYTES};
	sys2(NR_sigaltstack, &stack, 0);
}

static u64 xstate_bytes(u64 fpstate)
{
	const u32 *sw = (const u32 *)(fpstate + FXSAVE_SW_BYTES);
	return sw[0] == FP_XSTATE_MAGIC1 ? sw[1] : 512;
}

/* A handler begins with the vector registers of a new program, rounding modes among them: the program's own are in its
 * frame. Source: Linux v6.8 arch/x86/kernel/fpu/core.c:fpu__clear_user_states(). */
static void clear_registers(u64 fpstate)
{
	int has_header = *(const u32 *)(fpstate + FXSAVE_SW_BYTES) == FP_XSTATE_MAGIC1;
	memset((void *)fpstate, 0, FXSAVE_MXCSR_MASK);
	*(uint16_t *)fpstate = INIT_FCW;
	*(u32 *)(fpstate + FXSAVE_MXCSR) = INIT_MXCSR;
	memset((void *)(fpstate + FXSAVE_REGISTERS), 0, FXSAVE_REGISTERS_BYTES);
	if (has_header)
		*(u64 *)(fpstate + XSAVE_HEADER) = 0;	/* no register differs from its initial state */
}

/* Whether the stub's own code was interrupted: not the gate, which is the program's. */
static int is_in_stub(const struct ucontext *uc)
{
	return zone_of(uc->mc.rip) == IN_STUB;
}

/* End by a fault that the host sees, while the stub handles none: also the first process of a PID namespace, which only a
 * fault of its own ends. Source: Linux v6.8 kernel/signal.c:force_sig_info_to_task(). */
void end_by_fault(int signo)
{
	const volatile char *at = 0;
	if (signo == SIGBUS)
		at = (const char *)sys6(NR_mmap, 0, PAGE_BYTES, 1, 1, sys2(NR_memfd_create, "", 0), 0);
	*at;
	end_by_sigkill();
}

/* Have the host do what a signal does by default, as the handler returns: a core dump has the program's registers then. If the
 * program ends by that, no other signal comes before. */
static void default_action(struct thread *t, struct ucontext *uc, const struct siginfo *given)
{
	struct siginfo marked = *given, *info = &marked;
	u64 all = ~0UL, bit = BIT(info->signo);
	if (bit & IGNORED_BY_DEFAULT || (info->code <= 0 && is_init()))
		return;
	sys4(NR_rt_sigprocmask, 2, &all, 0, 8);
	if (bit & DUMPS_CORE && !is_in_stub(uc))
		dump_memory(t);
	set_host_action(info->signo, SIG_DFL, 0);
	if (is_init())
		end_by_fault(info->signo);
	if (process.traced)
		marked.err = MARK_DEFAULT;
	if (sys4(NR_rt_tgsigqueueinfo, sys0(NR_getpid), sys0(NR_gettid), info->signo, info) < 0)
		end_by_sigkill();
	uc->sigmask = bit & STOPS ? uc->sigmask : ~bit;
}

/* Where there is no memory for the frame of a handler of `signo`: the program may handle that, but for SIGSEGV's own.
 * Source: Linux v6.8 kernel/signal.c:force_sigsegv(). */
static void force_sigsegv(struct thread *t, struct ucontext *uc, int signo)
{
	struct siginfo info = {.signo = SIGSEGV, .code = SI_KERNEL};
	if (signo == SIGSEGV)
		default_action(t, uc, &info);
	else
		deliver(t, uc, &info);
}

/* Lay the frame that Linux lays on the stack of a handler; 0, or -1 where there is no memory for it. */
static long put_frame(struct thread *t, struct ucontext *uc, const struct kernel_sigaction *action, const struct siginfo *info)
{
	struct frame frame = {.restorer = action->restorer, .uc = *uc, .info = *info};
	u64 sp = uc->mc.rsp - RED_ZONE, xstate = xstate_bytes(uc->mc.fpstate);
	frame.uc.link = 0;
	frame.uc.stack = t->altstack;
	frame.uc.sigmask = uc->sigmask | t->masked;
	if (action->flags & SA_ONSTACK && t->altstack.size && !is_on_altstack(t, uc->mc.rsp))
		sp = t->altstack.sp + t->altstack.size;
	frame.uc.mc.fpstate = (sp - xstate) & -64UL;
	sp = ((frame.uc.mc.fpstate - sizeof frame) & -16UL) - 8;
	if (user_copy((void *)frame.uc.mc.fpstate, (void *)uc->mc.fpstate, xstate) || user_copy((void *)sp, &frame, sizeof frame))
		return -1;
	if (t->altstack.flags & SS_AUTODISARM)
		reset_altstack(t);
	uc->mc.rsp = sp;
	return 0;
}

void set_action(int signo)
{
	install(signo);
	if (find_stub_mask())
		install_all();
}

/* Have the program's handler run when the stub's returns; or do what the signal does by default. */
void deliver(struct thread *t, struct ucontext *uc, const struct siginfo *info)
{
	int signo = info->signo;
	struct kernel_sigaction action = actions()[signo];
	int forced = (BIT(signo) & OURS) && info->code > 0;
	if (forced && (t->masked & BIT(signo) || action.handler == SIG_IGN))
		action.handler = SIG_DFL;
	if (action.handler == SIG_IGN)
		return;
	if (action.handler == SIG_DFL) {
		default_action(t, uc, info);
		return;
	}
	if (put_frame(t, uc, &action, info)) {
		force_sigsegv(t, uc, signo);
		return;
	}
	if (action.flags & SA_RESETHAND) {
		actions()[signo].handler = SIG_DFL;
		set_action(signo);
	}
	u64 mask = uc->sigmask | t->masked | action.mask | (action.flags & SA_NODEFER ? 0 : BIT(signo));
	t->masked = mask & OURS;
	uc->sigmask = mask & ~OURS;
	uc->mc.rip = action.handler;
	uc->mc.rdi = signo;
	uc->mc.rsi = uc->mc.rsp + __builtin_offsetof(struct frame, info);
	uc->mc.rdx = uc->mc.rsp + __builtin_offsetof(struct frame, uc);
	uc->mc.rax = 0;
	uc->mc.eflags &= ~DF_RF_TF;
	clear_registers(uc->mc.fpstate);
	set_pkru(uc, INIT_PKRU);
}

static void on_fault(struct thread *t, struct ucontext *uc, const struct siginfo *host)
{
	struct siginfo info = *host;
	int in_access = uc->mc.rip >= (u64)user_access_start && uc->mc.rip < (u64)user_access_end;
	if (is_behind_gate(t, uc)) {
		leave_gate(t, uc);
		return;
	}
	if (is_in_stub(uc) && !in_access && skip_rdtsc(uc))
		return;
	if (is_in_stub(uc) && !in_access)
		die("a fault in the stub itself");
	if (uc->mc.trapno == X86_TRAP_PF && table_fault(uc->mc.cr2, uc->mc.err & X86_PF_WRITE, &info)) {
		if (!info.signo)
			return;
	} else if (uc->mc.trapno == X86_TRAP_PF) {
		if (take_advance(t, uc->mc.cr2, uc->mc.err))
			return;
		u64 args[6] = {uc->mc.cr2, uc->mc.err & (X86_PF_WRITE | X86_PF_INSTR), in_access ? FAULT_FOR_KERNEL : 0, t->pkru};
		t->told_pkru = t->pkru;
		struct answer answer = page_fault(t, args);
		if (!answer.signo && answer.ret >= 0)
			return;
		memset(&info, 0, sizeof info);
		info.signo = answer.signo;
		info.code = answer.info.si_code;
		si_addr_of(&info) = answer.info.si_addr;
		if (info.code == SEGV_PKUERR)
			si_pkey_of(&info) = answer.info.si_pkey;
		/* kerneld takes it that the handler begins. */
		t->told_pkru = answer.signo ? INIT_PKRU : t->pkru;
	}
	if (in_access) {
		uc->mc.rip = (u64)user_access_failed;
		return;
	}
	uc->mc.oldmask = uc->sigmask;
	if (!show_fault(t, &info))
		deliver(t, uc, &info);
}

/* A signal that the program has sent to itself may look like the processor's. If it is blocked, the host delivers it in spite
 * of that, just before the next real one of the processor's: the stub's handler is about to begin, twice. Send it again, as the
 * host was to keep it, and go on as if the real one had come alone. Source: Linux v6.8 kernel/signal.c:
 * dequeue_synchronous_signal(). */
static void put_back(struct ucontext *uc)
{
	const struct frame *other = (const struct frame *)uc->mc.rsp;
	sys4(NR_rt_tgsigqueueinfo, sys0(NR_getpid), sys0(NR_gettid), other->info.signo, &other->info);
	*uc = other->uc;
}

static void handle(struct thread *t, int signo, struct siginfo *info, struct ucontext *uc)
{
	u64 ours = OURS;
	if (process.dump && (signo == SIGSEGV && info->code > 0 && !is_in_stub(uc) ? dump_settles_fault(t) : !dump_wait(t)))
		return;
	if (take_mark(t, uc, info))
		return;
	if (signo == SIGSYS && info->code == SYS_SECCOMP) {
		on_syscall(t, uc);
		return;
	}
	if ((signo == SIGSEGV || signo == SIGBUS) && info->code > 0) {
		on_fault(t, uc, info);
		return;
	}
	/* sigsuspend() and the like may have blocked what the stub needs. */
	sys4(NR_rt_sigprocmask, 1, &ours, 0, 8);
	if (signo == SIGSYS && take_kick(t, uc))
		return;
	if (BIT(signo) & OURS) {
		keep_pending(t, info);
		return;
	}
	if (signo == SIGCHLD && process.is_tracer && !tracer_child(t, info)) {
		undo_interruption(t, uc);
		return;
	}
	leave_gate(t, uc);
	deliver(t, uc, info);
}

void stub_handler(int signo, struct siginfo *info, struct ucontext *uc)
{
	struct thread *t = this_thread();
	if (BIT(signo) & OURS && info->code > 0 && uc->mc.rip == (u64)stub_handler)
		put_back(uc);
	if (!is_in_stub(uc)) {
		t->pkru = pkru_of(uc);
		t->mask = uc->sigmask;
		t->saved = uc;
		t->has_queued = 0;
	}
	handle(t, signo, info, uc);
	if (!is_in_stub(uc) && !t->has_queued)
		deliver_pending(t, uc);
	if (t->stop_at_exit)
		stop_at_exit(t, uc);
}

/* The program returns from its handler: take up what its frame says. */
void sys_sigreturn(struct thread *t, struct ucontext *uc)
{
	struct frame frame;
	u64 fpstate = uc->mc.fpstate, room = xstate_bytes(fpstate);
	if (user_copy(&frame, (void *)(uc->mc.rsp - 8), sizeof frame)) {
		force_sigsegv(t, uc, 0);
		return;
	}
	if (frame.uc.mc.fpstate) {
		u32 head[2] = {0};
		if (user_copy(head, (void *)(frame.uc.mc.fpstate + FXSAVE_SW_BYTES), 8)) {
			force_sigsegv(t, uc, 0);
			return;
		}
		u64 size = head[0] == FP_XSTATE_MAGIC1 ? head[1] : 512;
		if (size > room || user_copy((void *)fpstate, (void *)frame.uc.mc.fpstate, size)) {
			force_sigsegv(t, uc, 0);
			return;
		}
	}
	struct stack host = uc->stack;
	uc->mc = frame.uc.mc;
	uc->mc.fpstate = fpstate;
	uc->stack = host;
	uc->flags = frame.uc.flags;
	t->masked = frame.uc.sigmask & OURS;
	uc->sigmask = frame.uc.sigmask & ~OURS;
	change_altstack(t, uc->mc.rsp, frame.uc.stack);
}
