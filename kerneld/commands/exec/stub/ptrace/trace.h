/* ptrace(2): what the parts of a tracer's stub share. The design is in docs/programs.md, "ptrace".
 *
 * The host's ptrace is used as it is. What the program must not see is hidden in the tracer's stub: the stops of the tracee's
 * own stub. A tracee that is in its stub is let run until it leaves that; there it stops again if the tracer's stub has
 * asked for it (thread.stop_at_exit). So wherever a tracer sees its tracee stand, the registers are the program's. */
#pragma once
#include "../proc/proc.h"

#define WALL 0x40000000L
#define WNOHANG 1
#define WSTOPPED 2
#define WNOWAIT 0x01000000L

enum {
	PTRACE_TRACEME = 0, PTRACE_PEEKTEXT, PTRACE_PEEKDATA, PTRACE_PEEKUSER, PTRACE_POKETEXT, PTRACE_POKEDATA, PTRACE_POKEUSER,
	PTRACE_CONT, PTRACE_KILL, PTRACE_SINGLESTEP, PTRACE_GETREGS = 12, PTRACE_SETREGS, PTRACE_GETFPREGS, PTRACE_SETFPREGS,
	PTRACE_ATTACH, PTRACE_DETACH, PTRACE_SYSCALL = 24,
	PTRACE_SETOPTIONS = 0x4200, PTRACE_GETEVENTMSG, PTRACE_GETSIGINFO, PTRACE_SETSIGINFO, PTRACE_GETREGSET, PTRACE_SETREGSET,
	PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_LISTEN, PTRACE_PEEKSIGINFO, PTRACE_GETSIGMASK, PTRACE_SETSIGMASK,
	PTRACE_GET_SYSCALL_INFO = 0x420e,
};
enum {
	EVENT_FORK = 1, EVENT_VFORK, EVENT_CLONE, EVENT_EXEC, EVENT_VFORK_DONE, EVENT_EXIT, EVENT_STOP = 128,
	OPTION_SYSGOOD = 1, OPTION_EXEC = 1 << EVENT_EXEC, OPTION_EXITKILL = 1 << 20,
	OPTIONS = OPTION_SYSGOOD | 0x7e | OPTION_EXITKILL,	/* all that a kernel without seccomp has */
	OUR_OPTIONS = OPTION_SYSGOOD | OPTION_EXEC,	/* the stub needs them of each tracee */
	SYSCALL_STOP = SIGTRAP | 0x80,
};

/* Linux's struct user_regs_struct. */
struct user_regs {
	u64 r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi, orig_rax, rip, cs, eflags, rsp, ss, fs_base,
	gs_base, ds, es, fs, gs;
};

/* How the tracer has let its tracee go on. */
enum mode { CONT, SYSCALL, STEP };

/* What a stop that the tracer sees is on the host: the same (SIGNAL, CALL, EVENT, GROUP); the stop at which the tracee left
 * its stub (EXIT, shown as an event, as the end of a call, or as a step); or a signal's, shown first as the end of the call
 * that it has interrupted (HELD). */
enum stop_kind { RUNS, SIGNAL, CALL, EVENT, GROUP, EXIT, HELD };

#define MOST_DEFERRED 8
struct deferred { int is_sent; struct siginfo info; };
struct tracee {
	int tid, tracer;	/* its thread, and that which traces it; tid 0: free */
	u32 options;		/* the tracer's */
	int is_known;		/* the host has OUR_OPTIONS of it, and its stub knows that it is traced */
	int is_seized;
	enum mode mode;
	enum stop_kind kind;
	int is_in_fault;	/* it is in its stub because of a fault: the instruction is made again, and a step is not over */
	int status;		/* as the tracer is to see it */
	int is_in_call;		/* the beginning of a call has been shown, and not its end */
	int is_leaving;		/* it is in its stub, and is to stop when it leaves that */
	int is_interrupted;	/* by PTRACE_INTERRUPT, or is a seized child that begins */
	int has_executed;	/* another program, which has not begun */
	int is_syscall_end;	/* EXIT and HELD: what is shown is the end of a call */
	long nr;		/* of the call */
	u64 area;		/* its struct thread, in its own memory; 0: not known */
	u64 message;		/* PTRACE_GETEVENTMSG */
	u64 dr7;		/* its hardware breakpoints: none works while it is in its stub */
	struct siginfo info;	/* PTRACE_GETSIGINFO */
	struct deferred deferred[MOST_DEFERRED];	/* signals that have come while it was in its stub */
};

/* tracees.c */
struct tracee *find_tracee(struct thread *t, int tid);
struct tracee *new_tracee(struct thread *t, int tid, const struct tracee *parent);	/* 0: it inherits nothing */
void inherit(struct tracee *child, const struct tracee *parent);
void drop_tracee(struct tracee *tracee);
struct tracee *next_tracee(struct thread *t, struct tracee *after);
long host_ptrace(long request, const struct tracee *tracee, u64 addr, void *data);
u64 peek(const struct tracee *tracee, u64 at);
void poke(const struct tracee *tracee, u64 at, u64 value);
u64 area_of(struct tracee *tracee);
int is_agent(int pid, int is_gone);
u64 process_of(int tid);	/* the process of a thread; 0: there is none */
u64 area_by_registers(const struct user_regs *regs);
void defer(struct tracee *tracee, const struct siginfo *info);
void send_deferred(struct tracee *tracee);
void take_deferred(struct tracee *tracee, struct siginfo *info);

/* stops.c, leave.c */
int take_stop(struct thread *t, struct tracee *tracee, int status);
int stands_in_stub(const struct tracee *tracee);
int show(struct tracee *tracee, enum stop_kind kind, int status);
int show_call(struct tracee *tracee, enum stop_kind kind);
long resume_host(struct tracee *tracee, int signo);
int run_in_stub(struct tracee *tracee, u64 how, int signo);
void has_left_stub(struct tracee *tracee);
int read_gate(const struct tracee *tracee, struct user_regs *regs);
int leave_gate_for(struct tracee *tracee, struct user_regs *regs);
int at_exit_of_stub(struct tracee *tracee, struct user_regs *regs, enum zone zone);
long let_go(struct tracee *tracee, enum mode mode, int signo);
long detach(struct tracee *tracee, int signo);

/* registers.c */
long get_registers(struct tracee *tracee, struct user_regs *regs);
long set_registers(struct tracee *tracee, const struct user_regs *regs);
long registers_call(struct tracee *tracee, long request, u64 addr, u64 data);

/* tracer_wait.c */
int serve_tracees(struct thread *t);
