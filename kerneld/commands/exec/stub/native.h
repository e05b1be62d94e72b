/* A program whose memory is kerneld's: what the parts of the stub share.
 *
 * The stub is the only code of the host's process that is not the program's. It lies, with all that it needs, in one
 * range of addresses, [STUB_START, STUB_END), where neither Linux nor kerneld ever puts a mapping unasked. All that is
 * mapped outside of it are pages of the machine's RAM: a cache of kerneld's page table, a TLB. See docs/programs.md.
 *
 * No libc, no %fs, no %gs, no vector registers: these are the program's.
 */
#pragma once
#include "records.h"
#include "sys.h"

#pragma GCC visibility push(hidden)

#define PAGE_BYTES 4096UL
#define STUB_START 0x6a0000000000UL
#define STUB_END 0x6a8000000000UL
#define AREAS_START 0x6a1000000000UL
#define AREA_BYTES 0x80000UL
#define MAX_AREAS 2048
#define AGENT_NAME "kerneld-tlb"
#define VDSO_START 0x6a0800000000UL
#define VDSO_END 0x6a0800100000UL
#define USER_END 0x7ffffffff000UL

/* What the stub lives by: never really blocked, never really ignored. */
#define OURS (BIT(SIGSEGV) | BIT(SIGBUS) | BIT(SIGSYS))
#define NR_OURS 3

/* ptrace(2): stops.c. Marks of signals, in si_errno, where Linux has 0. */
enum {
	MARK_EXIT = 0x6b64001,	/* SIGSYS: the thread has left the stub, as its tracer has asked for */
	MARK_FAULT,		/* the program gets this signal because of a fault */
	MARK_DEFAULT,		/* the stub has delivered this signal, and has the host do what it does by default */
	MARK_TRACER,		/* SIGSYS: a child is about to be traced */
};
enum { STOP_IN_PROGRAM = 1, STOP_ANYWHERE };	/* thread.stop_at_exit: not when it comes to the gate; there too */
#define SI_QUEUE -1
#define AT_DR7 904	/* of PTRACE_POKEUSER */

/* One thread of the program. Its area: a page of code (the gate), this, a buffer, the stack of the stub. */
struct thread {
	u64 gate_return;	/* where the gate goes on: behind the program's own syscall instruction, or behind the gate */
	int conn;		/* the connection to kerneld */
	int tid;
	u64 mapping;		/* it is about to map pages that an answer named: the agent waits for that */
	struct rseq rseq;	/* tlb.c: what the host restarts */
	int has_rseq;
	u32 pkru, told_pkru;	/* the program's, when it came into the stub; what kerneld takes it for */
	u64 mask;		/* the program's, when it came into the stub */
	int is_killable;	/* the request that it makes may wait for a userfaultfd */
	u64 masked;		/* those of OURS that the program believes it has blocked */
	struct siginfo pending[NR_OURS];	/* those of OURS that have come and are not taken: pending.c */
	struct stack altstack;	/* the program's own */
	u64 clear_tid, robust;	/* set_tid_address(), set_robust_list() */
	u64 parent_tid, child_tid;	/* where it is told who it is, when it begins: CLONE_PARENT_SETTID, CLONE_CHILD_SETTID */
	u64 is_told;		/* who writes parent_tid: fork.c */
	u64 token;		/* kerneld's, for the attach of a process in the same memory */
	u64 clear_sighand;	/* it begins without handlers: CLONE_CLEAR_SIGHAND */
	int is_borrower;	/* of the memory, with descriptors of its own: vfork's child */
	int is_sharer;		/* a process of its own in this memory, not a thread */
	int is_brief;		/* it was made by vfork, and makes few requests: it gets no ring */
	u64 left_child;		/* the pid of vfork's child, of which kerneld does not know yet that it has left the memory; 0: none */
	struct advances *advances;	/* behind the ring: pages that it may take by itself; 0: no ring */
	u64 *ring;		/* memory in which requests go to kerneld while it looks there; 0: none */
	u64 ring_number;	/* of the last request in it */
	u32 ring_misses, ring_skip;
	int mapped_fd;		/* of the file that was mapped last: memory.c */
	char *buffer;
	struct {		/* the call that is in the gate: gate.c, bounce.c */
		u64 is_copied;	/* it works on copies */
		long nr, began;	/* when, in nanoseconds, in a tracer */
		u64 args[6], resume;	/* as the program made it, and where it goes on */
		u64 outs;
		u64 big, big_bytes;	/* memory of its own, where the area has not enough room */
		u64 next, end;	/* the room that is left for copies */
	} bounce;
	int reads_stream;	/* a read reads from a pipe, a socket or the like: what is there at once is what it gives */
	struct kernel_sigaction *actions;	/* of vfork's child, whose handlers are its own; 0: those of the process */
	int has_queued;		/* a signal for its tracer, since it came into the stub: traced.c */
	u64 stop_at_exit;	/* its tracer has asked for a stop when it leaves the stub */
	const struct ucontext *saved;	/* the program's registers, while it is in the stub */
	int is_traced_by_exec;	/* vfork's child has asked to be traced */
	struct { int status; struct siginfo info; u64 usage[18]; } wait;	/* what a wait of a tracer tells: tracer_wait.c */
	u64 shared_futex, shared_futex_bytes;	/* where it waits, by a key that is the frame */
	int is_kicked;		/* by the agent, for the frame has gone */
};
#define BUFFER_BYTES 0x20000UL
#define BOUNCE_BYTES 0x20000UL
/* Behind these is the stub's own stack, up to the end of the area. */
#define STACK_START(t) ((u64)(t) + PAGE_BYTES + BUFFER_BYTES + BOUNCE_BYTES)
#define STACK_BYTES (AREA_BYTES - 2 * PAGE_BYTES - BUFFER_BYTES - BOUNCE_BYTES)

/* The process: in the stub's own data, which fork copies and threads share. */
#define EXE_BYTES 4096
struct process {
	int is_started;		/* before that, what goes wrong is a status of kerneld exec */
	int is_not_compared;	/* kerneld cannot tell whether a descriptor is of the file that was mapped last */
	int is_ending;		/* a thread has told kerneld so: the others' connections end before the host ends them */
	int ram_fd, agent_conn, agent_pid, hidden_fds;	/* descriptors from hidden_fds on are not the program's */
	u32 dump;		/* a thread makes the memory true for a core dump: dump.c */
	struct thread *dumper;
	u32 agent_drops;	/* the agent carries an order out */
	u32 sharers_begin;	/* so many threads make a process that shares this memory, or sleep until vfork's has left it */
	u64 traced;		/* it is or was traced by a program inside */
	int is_tracer;
	int has_odd_children;	/* it has made some that end with another signal than SIGCHLD */
	int has_userfaultfds;	/* has or has had */
	int has_low_water;	/* it has asked for sockets that give nothing before they have much (SO_RCVLOWAT) */
	int has_sharers;	/* other processes use or have used this memory: its agent may live longer than this one */
	int stub_fd;		/* the stub's own file, for the next execve */
	u64 generation;
	u32 abi;		/* the semester whose calls of the shadow page table it makes */
	int shared_waits;	/* how many threads have a shared_futex */
	u64 minsigstksz;	/* AT_MINSIGSTKSZ of the host */
	u32 pkru_at;		/* where PKRU is in the registers that a handler finds; 0: no protection keys */
	u64 stub_mask;		/* of the stub's handlers */
	struct kernel_sigaction actions[65];
	char socket_path[108];
	char exe[EXE_BYTES];
};
extern struct process process;
extern char user_access_start[], user_access_end[], user_access_failed[];

/* start.c */
struct thread *thread_area(void);
int map_area(int number);
void free_area(struct thread *t);
struct thread *area_at(int number);
void attach(struct thread *t, u64 flags, u64 tid, u64 token);
void forget_other_areas(struct thread *t);
void leave_area(struct thread *t, long status) __attribute__((noreturn));
struct answer go_native(struct thread *t, u64 flags, const struct request *first, const void *data, u64 length, const int *fds,
			int count);
long gate_of(struct thread *t);
extern u64 areas_used[MAX_AREAS / 64];	/* a bit for each */
static inline struct thread *this_thread(void)
{
	return (struct thread *)(((u64)__builtin_frame_address(0) & -AREA_BYTES) + PAGE_BYTES);
}

/* What the program does at each signal. */
static inline struct kernel_sigaction *actions(void)
{
	struct kernel_sigaction *own = this_thread()->actions;
	return own ? own : process.actions;
}
void end_by_sigkill(void) __attribute__((noreturn));
void die(const char *why) __attribute__((noreturn));
void gone(void) __attribute__((noreturn));
void say(const char *text);

/* wire.c */
#define MOST_FDS 4	/* in an answer */
struct answer { long ret; int signo; struct siginfo_wire info; const char *data; u64 length; int fd[MOST_FDS]; };
int kerneld_connect(const char *path);
int new_connection(struct thread *t);
int ask_many(struct thread *t, struct request *requests, int count, const void *data, u64 length, const int *fds, int nr_fds,
	     struct answer *answers);
struct answer ask(struct thread *t, u32 nr, const u64 *args, const void *data, u64 length, int fd);
struct answer ask_two(struct thread *t, u32 nr, const u64 *args, const void *data, u64 length, const int *fds, int count);
long ask_ret(struct thread *t, u32 nr, const u64 *args);

struct answer ask_for_page(struct thread *t, const u64 *args, int signals);

/* userfault.c */
int await_answer(struct thread *t, int signals);
struct answer page_fault(struct thread *t, u64 *args);
int userfault_call(struct thread *t, const u64 *args, long nr, long *ret);

/* ring.c */
#define LONGEST_CYCLES 500000UL	/* some 200 microseconds: a fault of a file takes kerneld 100 */
#define LONGEST_SERVED_CYCLES (5 * LONGEST_CYCLES)	/* the same, while kerneld serves the request: munmap takes 400 microseconds */
void ring_open(struct thread *t, int fd);
void ring_name_child(struct thread *t, u64 token, u32 pid);
int ring_is_watched(struct thread *t);
int skip_rdtsc(struct ucontext *uc);
long ring_ask(struct thread *t, const struct request *head, const void *data, u64 length, char *buffer, u64 room);

/* descriptors.c */
void descriptors_start(u64 soft, u64 hard);
void descriptors_tell(char *to);
void descriptors_widen(void);
void descriptors_narrow(void);
void descriptors_fork(void);
long descriptor_limit(u64 new, u64 old);
long hide_fd(int fd);
int is_hidden(u64 fd);
long copy_hidden(int fd);
void drop_copy(const char *path);

/* tlb.c */
void tlb_start(struct thread *t);
void tlb_apply(struct thread *t, const struct tlb_record *record);
long tlb_unmap(u64 start, u64 length);
long tlb_drop(u64 start, u64 length);
void tlb_drop_all(void);
int tlb_begin(struct thread *t);
void tlb_put_taken(struct thread *t, u64 generation, u64 start, u64 length, long prot, u64 offset);
void tlb_end(struct thread *t);

/* advance.c */
int take_advance(struct thread *t, u64 address, u64 err);

/* dump.c */
enum { DUMP_BEGINS = 1, DUMP_OWNS_MEMORY = 2, DUMP_IS_READY = 3 };	/* process.dump */
void dump_memory(struct thread *t);
void make_memory_true(struct thread *t);
int dump_wait(struct thread *t);
int dump_settles_fault(struct thread *t);

/* user.S in asm.c */
long user_copy(void *to, const void *from, u64 length);	/* 0, or -1 where a page cannot be had */
long user_strlen(const char *text);			/* without its NUL; -1 likewise */
long touch(u64 start, u64 length, int write);

/* keys.c */
#define INIT_PKRU 0x55555554U	/* of a program that begins, and of a handler */
void keys_start(void);
u32 pkru_of(const struct ucontext *uc);
void set_pkru(struct ucontext *uc, u32 value);
void keys_open(struct thread *t);
void keys_close(struct thread *t);
void keys_before_call(struct thread *t);
void keys_after_call(struct thread *t, struct ucontext *uc, long nr, const u64 *args, long ret);
void keys_before_native(struct thread *t, u64 *args);
void keys_after_native(long ret);

/* signals.c */
void end_by_fault(int signo) __attribute__((noreturn));
void install_handlers(void);
int is_caught(int signo);
void set_altstack(struct thread *t);
int is_on_altstack(const struct thread *t, u64 sp);
void reset_altstack(struct thread *t);
long change_altstack(struct thread *t, u64 sp, struct stack new);
void clear_handlers(void);
void begin_as_init(void);

/* pending.c */
void keep_pending(struct thread *t, const struct siginfo *info);
void drop_pending(struct thread *t, int signo);
void drop_all_pending(struct thread *t);
void deliver_pending(struct thread *t, struct ucontext *uc);
long sys_sigpending(struct thread *t, const struct ucontext *uc, const u64 *args);
int sigtimedwait_call(struct thread *t, const u64 *args, long *ret);
int sigqueue_call(struct thread *t, const u64 *args, long nr, long *ret);

/* signals.c */
void watch_children(void);
void deliver(struct thread *t, struct ucontext *uc, const struct siginfo *info);
void set_action(int signo);
void sys_sigreturn(struct thread *t, struct ucontext *uc);
void stub_handler(int signo, struct siginfo *info, struct ucontext *uc);

/* sigmask.c */
int signal_call(struct thread *t, struct ucontext *uc, const u64 *args, long nr, long *ret);

/* calls.c, memory.c */
void on_syscall(struct thread *t, struct ucontext *uc);
#define ASKS_PERSONALITY 0xffffffffU
#define PERSONALITY_OF_MEMORY 0x8f00000U	/* MMAP_PAGE_ZERO, ADDR_COMPAT_LAYOUT, READ_IMPLIES_EXEC, ADDR_LIMIT_32BIT, ADDR_LIMIT_3GB */
int memory_call(struct thread *t, struct ucontext *uc, const u64 *args, long nr, long *ret);
long sys_personality(struct thread *t, u64 wanted);

/* robust.c */
void leave_futexes(struct thread *t, int others_live);

/* gate.c */
#define GATE_BYTES 57		/* of code, at the start of an area */
#define SYSCALL_BYTES 2
#define GATE_HLT 8
void write_gate(unsigned char *code);
void pass(struct thread *t, struct ucontext *uc, long nr);
long direct_call(struct thread *t, long nr, const u64 *args);
void host_call(struct thread *t, struct ucontext *uc, long nr, const u64 *args);
void leave_gate(struct thread *t, struct ucontext *uc);
int is_behind_gate(struct thread *t, const struct ucontext *uc);
void kick_waiters(u64 start, u64 length);	/* futex.c */
void undo_interruption(struct thread *t, struct ucontext *uc);
int take_kick(struct thread *t, struct ucontext *uc);

/* bounce.c */
struct row;
void bounce_in(struct thread *t, const struct row *row, u64 *args);
long bounce_out(struct thread *t, long ret);
void bounce_drop(struct thread *t);

/* filter.c */
int is_free_call(long nr);

/* ptrace.c, tracees.c, tracer_wait.c, traced.c */
long sys_ptrace(struct thread *t, const u64 *args);
void become_tracer(void);
void forget_tracees(void);
int waits(struct thread *t, long nr, const u64 *args, u64 *copies);
int wait_is_over(struct thread *t, long nr, const u64 *args, long *ret);
int tracer_child(struct thread *t, const struct siginfo *info);
void stop_at_exit(struct thread *t, const struct ucontext *uc);
int show_fault(struct thread *t, const struct siginfo *info);
int take_mark(struct thread *t, struct ucontext *uc, struct siginfo *info);

/* timed.c */
long now(void);
int go_on_with_rest(struct thread *t, struct ucontext *uc);

/* room.c */
u64 copy_in(u64 to, u64 from, u64 length);	/* how much could be copied */
u64 copy_out(u64 to, u64 from, u64 length);
void room_forget(void);

/* proc.c, proc_text.c */
#define MOST_EXE 48
long exe_of(const char *path, char *to);	/* the program's path, by its link in /proc; its length, 0 for another path */
int view_call(struct thread *t, const u64 *args, long nr, int fd, u64 device, u64 size, int changes, long *ret);
long proc_opened(struct thread *t, int fd, u64 flags);
long proc_real_file(int fd);
long read_host(const char *path, char *to, u64 room);
u64 value_of(const char *text, const char *name);	/* the number in a line of a file of /proc; 0 for none */
struct answer ask_file(struct thread *t, const char *path, u64 offset, u64 length);
int sysinfo_call(struct thread *t, const u64 *args, long *ret);

/* files.c */
void files_start(void);
int file_call(struct thread *t, const u64 *args, long nr, long *ret);
long file_opened(struct thread *t, const u64 *args, long nr, long ret);
int opens_file(long nr);

static inline int is_vdso(u64 at)
{
	return at >= VDSO_START && at < VDSO_END;
}

/* Where a thread stands: in its program (or the vdso), in its gate, in its stub. */
enum zone { IN_PROGRAM, IN_GATE, IN_STUB };
static inline enum zone zone_of(u64 rip)
{
	if (rip < STUB_START || rip >= STUB_END || is_vdso(rip))
		return IN_PROGRAM;
	return rip - AREAS_START < MAX_AREAS * AREA_BYTES && (rip & (AREA_BYTES - 1)) < GATE_BYTES ? IN_GATE : IN_STUB;
}

/* vdso.c */
long read_vdso(u64 to, u64 length, u64 from);
u64 move_vdso(void);

/* shadow.c */
int shadow_call(struct thread *t, const u64 *args, long nr, long *ret);
void table_dropped(u64 start, u64 length);
void table_replaced(u64 start, u64 length);
int table_fault(u64 address, int write, struct siginfo *info);

/* clone.c, fork.c, exec.c, agent.c */
long sys_clone(struct thread *t, struct ucontext *uc, u64 flags, const u64 *args);
long sys_clone3(struct thread *t, struct ucontext *uc, u64 at, u64 size);
long sys_exec(struct thread *t, struct ucontext *uc, int dirfd, const char *path, const u64 *vectors, long flags);
long check_program(struct thread *t, const char *path, int is_lost);
void agent_start(void);

static inline u64 string_length(const char *text)
{
	u64 length = 0;
	while (text[length])
		length++;
	return length;
}

/* Write a number and a NUL; what is behind the NUL. */
static inline char *put_number(char *to, u64 number)
{
	char digits[24];
	int count = 0;
	do
		digits[count++] = '0' + number % 10;
	while (number /= 10);
	while (count)
		*to++ = digits[--count];
	*to++ = 0;
	return to;
}
void *memcpy(void *to, const void *from, size_t length);
void *memset(void *to, int value, size_t length);
