/* The loader: it attaches to kerneld, has kerneld lay out the program, gives up all of the host's memory but the stub,
 * and jumps to the program's entry.
 *
 * Arguments: the connection's descriptor, or "-" for a new one; kerneld's socket; from which number on descriptors are
 * hidden, and behind slashes the semester, and flags of personality(2); the signals that are to be blocked, or "-" for those that are; the descriptor
 * of the stub's own file, and behind slashes the hard and the soft limit of open files that the program sees, or "-"; the
 * program's path; its name as it was given; its arguments.
 */
#include "native.h"

#define O_PATH 010000000
#define O_CLOEXEC 02000000
#define PROT_RWX 7
#define AT_MINSIGSTKSZ 51
#define MAP_AREA 0x32		/* private, anonymous, fixed */
#define F_SETFD 2
#define PR_SET_NAME 15
#define PR_SET_NO_NEW_PRIVS 38
#define STATUS_CANNOT_RUN 8
#define RLIMIT_COUNT 5
#define BEGIN_EFLAGS 0x202	/* interrupts are on */
#define USER_CS 0x33
#define USER_SS 0x2b

struct process process;
extern void run_on(u64 stack, void (*function)(u64), u64 argument);
extern void install_filter(void);
extern void begin_with_frame(u64 sp) __attribute__((noreturn));
void tell_arguments(u64 stack);
long load_program(struct thread *t, const char *path, const char *name, char **argv, u64 *entry);

u64 areas_used[MAX_AREAS / 64];
static u64 areas_mapped[MAX_AREAS / 64];	/* which have ever been: they stay */

void say(const char *text)
{
	sys3(NR_write, 2, text, string_length(text));
}

/* The first process of a PID namespace does not end by a signal that it sends to itself: its parent gets the status of a
 * shell's. Source: Linux v6.8 kernel/signal.c:sig_task_ignored(). */
void end_by_sigkill(void)
{
	sys2(NR_kill, sys0(NR_getpid), SIGKILL);
	for (;;)
		sys1(NR_exit_group, 128 + SIGKILL);
}

void die(const char *why)
{
	say("kerneld: ");
	say(why);
	if (!process.is_started) {
		say(": the program cannot be run\n");
		sys1(NR_exit_group, STATUS_CANNOT_RUN);
	}
	say(": the program is ended\n");
	end_by_sigkill();
}

/* kerneld serves the thread no more. If another thread has told it that the process ends, the host ends this one too. */
static void __attribute__((noreturn)) die_unless_ending(const char *why)
{
	while (__atomic_load_n(&process.is_ending, __ATOMIC_SEQ_CST))
		sys0(NR_pause);
	die(why);
}

/* The connection has ended. */
void gone(void)
{
	die_unless_ending("kerneld has gone");
}

long gate_of(struct thread *t)
{
	return (long)t - PAGE_BYTES;
}

static int take_area(void)
{
	for (int word = 0; word < MAX_AREAS / 64; word++) {
		u64 old = __atomic_load_n(&areas_used[word], __ATOMIC_RELAXED);
		while (~old) {
			int bit = __builtin_ctzl(~old);
			if (__atomic_compare_exchange_n(&areas_used[word], &old, old | 1UL << bit, 0, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
				return word * 64 + bit;
		}
	}
	return -1;
}

/* It may take long before it is there, and the agent looks at all areas meanwhile. */
__attribute__((noinline)) int map_area(int number)
{
	u64 start = AREAS_START + number * AREA_BYTES;
	if (sys6(NR_mmap, start, AREA_BYTES, PROT_RWX & 3, MAP_AREA, -1, 0) != (long)start)
		return 0;
	__atomic_fetch_or(&areas_mapped[number / 64], 1UL << number % 64, __ATOMIC_ACQ_REL);
	return 1;
}

struct thread *thread_area(void)
{
	int number = take_area();
	if (number < 0)
		return 0;
	u64 start = AREAS_START + number * AREA_BYTES;
	if (!map_area(number)) {
		__atomic_fetch_and(&areas_used[number / 64], ~(1UL << number % 64), __ATOMIC_ACQ_REL);
		return 0;
	}
	write_gate((unsigned char *)start);
	sys3(NR_mprotect, start, PAGE_BYTES, 5);
	struct thread *t = (struct thread *)(start + PAGE_BYTES);
	t->buffer = (char *)t + PAGE_BYTES;
	t->is_borrower = t->is_sharer = t->is_brief = t->is_kicked = 0;
	t->left_child = 0;
	t->stop_at_exit = t->is_traced_by_exec = 0;
	t->pkru = t->told_pkru = INIT_PKRU;
	t->shared_futex = t->robust = 0;
	t->mapped_fd = -1;
	memset(&t->bounce, 0, sizeof t->bounce);
	return t;
}

/* The thread whose area has a number, or 0. */
struct thread *area_at(int number)
{
	u64 used = __atomic_load_n(&areas_used[number / 64], __ATOMIC_ACQUIRE);
	if (!(used & __atomic_load_n(&areas_mapped[number / 64], __ATOMIC_ACQUIRE) & 1UL << number % 64))
		return 0;
	return (struct thread *)(AREAS_START + number * AREA_BYTES + PAGE_BYTES);
}

/* After a fork: the other threads are not here. */
void forget_other_areas(struct thread *t)
{
	u64 number = (gate_of(t) - AREAS_START) / AREA_BYTES;
	memset(areas_used, 0, sizeof areas_used);
	areas_used[number / 64] = 1UL << number % 64;
}

/* Give the area back and end the thread, without a step on its stack in between. */
void leave_area(struct thread *t, long status)
{
	u64 number = (gate_of(t) - AREAS_START) / AREA_BYTES;
	__asm__ volatile("lock andq %1, %0\n	mov $60, %%eax\n	syscall\n"
			 : "+m"(areas_used[number / 64])
			 : "r"(~(1UL << number % 64)), "D"(status)
			 : "rax", "rcx", "r11", "memory");
	__builtin_unreachable();
}

void free_area(struct thread *t)
{
	u64 number = (gate_of(t) - AREAS_START) / AREA_BYTES;
	__atomic_fetch_and(&areas_used[number / 64], ~(1UL << (number % 64)), __ATOMIC_ACQ_REL);
}

static u64 number_of(const char *text)
{
	u64 number = 0;
	while (*text >= '0' && *text <= '9')
		number = number * 10 + (*text++ - '0');
	return number;
}

/* The value of an entry of the host's auxiliary vector; 0 for none. */
static u64 host_value(const u64 *sp, u64 type)
{
	sp += sp[0] + 2;
	while (*sp++)
		;
	for (; sp[0]; sp += 2)
		if (sp[0] == type)
			return sp[1];
	return 0;
}

/* What is behind the next slash; the end of the text if there is none. */
static const char *behind_slash(const char *text)
{
	while (*text && *text != '/')
		text++;
	return *text ? text + 1 : text;
}

static void tell_limits(struct thread *t)
{
	static const int limits[RLIMIT_COUNT] = {2, 3, 5, 8, 9};
	for (int i = 0; i < RLIMIT_COUNT; i++) {
		u64 pair[2], args[6] = {0, limits[i], 1};
		if (!sys4(NR_prlimit64, 0, limits[i], 0, pair))
			ask(t, NR_prlimit64, args, pair, sizeof pair, -1);
	}
}

static void take_native(const struct answer *answer, const int *fds)
{
	if (answer->ret < 0)
		die(answer->ret == -EPERM ? "this kerneld takes no programs in (kerneld start --no-exec, or another user's)"
		    : answer->ret == -EAGAIN ? "no connection for the agent" : "kerneld does not know native programs");
	process.generation = 0;
	if (process.ram_fd > 0)
		sys1(NR_close, process.ram_fd);
	process.ram_fd = hide_fd(fds[0]);
	process.agent_conn = hide_fd(fds[1]);
	files_start();
}

/* Make a request, become native by the next in the same datagram, and get a ring by the last, if the thread is to have one.
 * Returns the answer to the first; if that is an error the others do not count. */
struct answer go_native(struct thread *t, u64 flags, const struct request *first, const void *data, u64 length, const int *fds,
			int count)
{
	struct request requests[3] = {*first, {.nr = KD_NATIVE, .args = {flags}}, {.nr = KD_RING}};
	struct answer answers[3];
	tlb_start(t);
	keys_before_native(t, requests[1].args);
	int nr_requests = t->is_brief ? 2 : 3;
	if (ask_many(t, requests, nr_requests, data, length, fds, count, answers) < nr_requests || answers[0].ret < 0)
		return answers[0];
	int *fd = answers[0].fd;
	keys_after_native(answers[1].ret);
	if (!(flags & NATIVE_THREAD)) {
		take_native(&answers[1], fd);
		fd += 2;
	} else if (answers[1].ret < 0) {
		die_unless_ending("kerneld refuses a thread or a child");
	}
	if (!t->is_brief && answers[2].ret > 0 && *fd >= 0) {
		ring_open(t, *fd);
		sys1(NR_close, *fd);
	}
	return answers[0];
}

/* Attach the connection of a thread or of a process, and make it native. */
void attach(struct thread *t, u64 flags, u64 tid, u64 token)
{
	struct request request = {.nr = KD_ATTACH, .args = {1, tid, token}};
	if (go_native(t, flags, &request, 0, 0, 0, 0).ret < 0)
		die_unless_ending("kerneld refuses to attach the program");
}

/* The program begins. If it is traced, its tracer sees it at its first instruction. */
__attribute__((noreturn)) static void enter(struct thread *t, u64 entry, u64 stack, u64 mask)
{
	struct ucontext begins = {
		.stack = {STACK_START(t), 0, 0, STACK_BYTES},
		.mc = {.rip = entry, .rsp = stack, .eflags = BEGIN_EFLAGS, .cs = USER_CS, .ss = USER_SS},
		.sigmask = mask & ~OURS,
	};
	t->saved = &begins;
	if (process.traced) {
		t->stop_at_exit = STOP_ANYWHERE;
		stop_at_exit(t, &begins);
	}
	begin_with_frame((u64)&begins);
}

static const char *words_for(long code)
{
	switch (code) {
	case -ENOENT:
		return "no such file or directory, or its interpreter is none";
	case -EACCES:
		return "permission denied";
	case -ENOEXEC:
		return "not a program of this machine";
	case -ENOMEM:
		return "the machine has not the memory (kerneld start --ram)";
	case -E2BIG:
		return "its arguments are too long";
	}
	return 0;
}

static void cannot_run(const char *name, long code)
{
	const char *words = words_for(code);
	char digits[4] = {'0' + -code / 100, '0' + -code / 10 % 10, '0' + -code % 10, 0};
	say("kerneld: cannot run ");
	say(name);
	say(words ? ": " : ": errno ");
	say(words ? words : digits + (digits[0] == '0') + (digits[0] == '0' && digits[1] == '0'));
	say("\n");
	sys1(NR_exit_group, STATUS_CANNOT_RUN);
}

static void set_name(const char *name)
{
	const char *base = name;
	for (; *name; name++)
		if (*name == '/' && name[1])
			base = name + 1;
	sys2(NR_prctl, PR_SET_NAME, base);
}

/* The first program of `kerneld exec` attaches, and tells what it has from outside. `personality`: flags that are wanted. */
static void attach_first(struct thread *t, u64 personality)
{
	u64 args[6] = {1};
	if (ask_ret(t, KD_ATTACH, args) < 0)
		die("kerneld refuses to attach the program");
	tell_limits(t);
	personality |= sys1(NR_personality, ASKS_PERSONALITY);
	if (personality)
		sys_personality(t, personality);
}

static void start_on_area(u64 sp)
{
	struct thread *t = this_thread();
	char **argv = (char **)(sp + 8);
	int is_new = argv[1][0] == '-';
	process.is_started = !is_new;
	u64 entry[2], mask, all = ~OURS;
	sys4(NR_rt_sigprocmask, 2, &all, &mask, 8);
	process.hidden_fds = number_of(argv[3]);
	const char *hard = behind_slash(argv[5]);
	descriptors_start(number_of(behind_slash(hard)), number_of(hard));
	descriptors_widen();
	process.abi = number_of(behind_slash(argv[3]));
	keys_start();
	process.minsigstksz = host_value((u64 *)sp, AT_MINSIGSTKSZ);
	memcpy(process.socket_path, argv[2], string_length(argv[2]) + 1);
	t->conn = is_new ? kerneld_connect(argv[2]) : (int)number_of(argv[1]);
	if (t->conn < 0)
		die("cannot connect to kerneld");
	process.stub_fd = is_new ? hide_fd(sys3(NR_open, "/proc/self/exe", O_PATH | O_CLOEXEC, 0)) : (int)number_of(argv[5]);
	t->tid = sys0(NR_gettid);
	if (is_new) {
		attach_first(t, number_of(behind_slash(behind_slash(argv[3]))));
	} else {
		sys3(NR_fcntl, t->conn, F_SETFD, 1);
		sys3(NR_fcntl, process.stub_fd, F_SETFD, 1);
		sys4(NR_wait4, -1, 0, 0x80000001, 0);	/* the agent of the program before: __WCLONE | WNOHANG */
	}
	long ret = load_program(t, argv[6], argv[7], argv + 8, entry);
	drop_copy(argv[6]);
	if (ret < 0 && is_new)
		cannot_run(argv[7], ret);
	if (ret < 0)
		die("a program could not be loaded behind the point of no return");
	set_name(argv[7]);
	if (argv[4][0] != '-')
		mask = number_of(argv[4]);
	t->masked = mask & OURS;
	tlb_drop_all();
	install_handlers();
	set_altstack(t);
	agent_start();
	tell_arguments(entry[1]);
	if (is_new)
		install_filter();
	process.is_started = 1;
	descriptors_narrow();
	enter(t, entry[0], entry[1], mask);
}

void start_main(u64 sp)
{
	if (*(u64 *)sp < 9) {
		say("kerneld: this is the stub of kerneld exec, not a program of its own\n");
		sys1(NR_exit_group, 2);
	}
	struct thread *t = thread_area();
	if (!t)
		die("no memory for the stub");
	run_on((u64)t - PAGE_BYTES + AREA_BYTES - 64, start_on_area, sp);
}
