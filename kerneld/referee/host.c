/*
 * The process that runs a memory program on the host's kernel: raw calls and real accesses, nothing else.
 *
 * Free of libc, so that its address space is as bare as kerneld's fresh process: text, stack, one control mapping at a
 * fixed place, and no vdso. It has no writable data of its own, so no bss lies next to the heap. Whoever runs it keeps
 * to orders and answers over a pair of pipes for each process of the program; a fork uses the next pair.
 *
 * argv[1]: the address of the control mapping, aligned to AREA; argv[2]: its length, both in hexadecimal; argv[3]: for
 * each process the descriptors to read from and to write to, each four hexadecimal digits.
 */
#define _GNU_SOURCE
#include <asm/unistd.h>
#include <linux/shm.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/ucontext.h>

#define PAGE 4096UL
#define AREA (32 * PAGE) /* of the control mapping, for each process */
#define MAX_DATA (16 * PAGE)
#define ALT_STACK (8 * PAGE)
#define TRAP_FLAG 0x100UL
#define IN_DATA 0xDA7AB0FFUL /* the upper half of an argument that is an offset in the data of its area */

enum order { CALL, LOAD, STORE, TOUCH, FORK, EXIT, WRPKRU };
enum access { READ, WRITE, FETCH };

struct request {
	uint64_t order, args[7], data_len;
	uint8_t data[184];
};

struct reply {
	int64_t ret;
	uint64_t fault_addr, minflt, data_len;
	int32_t signo, code;
	uint32_t pkey, pkru;
};

/* What a process knows; its place in the shared control mapping is its own, so that a fork copies none of it. */
struct state {
	struct request request;
	struct reply reply;
	struct { uint64_t time[4]; int64_t rest[14]; } usage;
	uint64_t step; /* of probe_fetch: 1 before the jump, 2 after it */
	uint64_t has_pkeys; /* of the processor, and the kernel uses them */
	int in, out;
	uint8_t data[MAX_DATA];
	uint8_t alt_stack[ALT_STACK];
};
_Static_assert(sizeof(struct state) <= AREA, "the areas overlap");
_Static_assert(sizeof(struct request) == 256, "the runner packs 256 bytes");

struct kernel_sigaction {
	void *handler;
	unsigned long flags;
	void *restorer;
	unsigned long mask;
};

static inline long raw(long nr, long a, long b, long c, long d, long e, long f)
{
	long ret;
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	__asm__ volatile("syscall"
			 : "=a"(ret)
			 : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return ret;
}

/*
 * Each probe makes one access and returns 0 or more, or goes to `recovered` from the handler. probe_fetch sets the trap
 * flag: the processor traps after the jump and again after the one instruction that it has fetched at the target. What
 * it fetches is zeros (add %al,(%rax), with rax at a scratch byte) or bytes that programs store, which the generator
 * takes from harmless instructions of one byte.
 */
#pragma GCC visibility push(hidden) /* all in this one file: no table of addresses is needed */
long probe_load(const void *addr);
long probe_store(void *addr, long byte);
long probe_write(void *addr);
long probe_fetch(const void *addr, void *scratch);
long probe_wrpkru(uint32_t value);
extern char recovered[];
void restorer(void);
void entry(void);
#pragma GCC visibility pop
__asm__(".text\n"
	"probe_load: movzbl (%rdi), %eax\n ret\n"
	"probe_store: movb %sil, (%rdi)\n xorl %eax, %eax\n ret\n"
	"probe_write: lock orb $0, (%rdi)\n xorl %eax, %eax\n ret\n"
	"probe_fetch: movq %rsi, %rax\n pushfq\n orq $0x100, (%rsp)\n popfq\n"
	"jmp *%rdi\n"
	"probe_wrpkru: movl %edi, %eax\n xorl %ecx, %ecx\n xorl %edx, %edx\n"
	".byte 0x0f, 0x01, 0xef\n xorl %eax, %eax\n ret\n"
	"recovered: movq $-1, %rax\n ret\n"
	"restorer: movl $15, %eax\n syscall\n"
	".globl entry\n"
	"entry: movq %rsp, %rdi\n andq $-16, %rsp\n call start\n");

static struct state *find_state(void)
{
	/* The signal stack lies in the area; between signals the ordinary one holds a pointer. */
	uint64_t sp = (uint64_t)__builtin_frame_address(0);
	return (struct state *)(sp & ~(AREA - 1));
}

static void on_signal(int signo, siginfo_t *info, ucontext_t *context)
{
	struct state *state = find_state();
	greg_t *regs = context->uc_mcontext.gregs;

	/* The first trap comes after the jump: go on, into the instruction that was asked for. */
	if (signo == SIGTRAP && state->step == 1) {
		state->step = 2;
		return;
	}
	if (signo != SIGTRAP) {
		state->reply.signo = signo;
		state->reply.code = info->si_code;
		/* Of an instruction that the processor does not have it is where that lies: kerneld's lies nowhere. */
		state->reply.fault_addr = signo == SIGILL ? 0 : (uint64_t)info->si_addr;
		state->reply.pkey = signo == SIGSEGV && info->si_code == SEGV_PKUERR ? info->si_pkey : 0;
	}
	regs[REG_RIP] = (greg_t)recovered;
	regs[REG_EFL] &= ~TRAP_FLAG;
}

static void get_exactly(struct state *state, void *to, unsigned long length)
{
	for (unsigned long done = 0; done < length;) {
		long got = raw(__NR_read, state->in, (long)((char *)to + done), length - done, 0, 0, 0);
		if (got <= 0)
			raw(__NR_exit_group, 0, 0, 0, 0, 0, 0);
		done += got;
	}
}

static void put_exactly(struct state *state, const void *from, unsigned long length)
{
	for (unsigned long done = 0; done < length;) {
		long put = raw(__NR_write, state->out, (long)((const char *)from + done), length - done, 0, 0, 0);
		if (put <= 0)
			raw(__NR_exit_group, 0, 0, 0, 0, 0, 0);
		done += put;
	}
}

/* ru_minflt is the seventh word of struct rusage after the two times. */
static uint64_t min_flt(struct state *state)
{
	raw(__NR_getrusage, 0, (long)&state->usage, 0, 0, 0, 0);
	return state->usage.rest[4];
}

static void load(struct state *state, uint64_t addr, uint64_t length)
{
	for (uint64_t i = 0; i < length; i++) {
		long byte = probe_load((const void *)(addr + i));
		if (state->reply.signo)
			break;
		state->data[i] = byte;
		state->reply.ret = state->reply.data_len = i + 1;
	}
}

static void store(struct state *state, uint64_t addr, uint64_t length)
{
	for (uint64_t i = 0; i < length; i++) {
		probe_store((void *)(addr + i), state->request.data[i % state->request.data_len]);
		if (state->reply.signo)
			break;
		state->reply.ret = i + 1;
	}
}

static void touch(struct state *state, uint64_t addr, uint64_t length, uint64_t access)
{
	uint64_t end = (addr + length + PAGE - 1) & ~(PAGE - 1);

	while (length && addr < end) {
		if (access == READ) {
			probe_load((const void *)addr);
		} else if (access == WRITE) {
			probe_write((void *)addr);
		} else {
			uint64_t target[2]; /* beside the state: a store to it must not be one to the area */
			state->step = 1;
			probe_fetch((const void *)addr, target);
		}
		if (state->reply.signo)
			break;
		state->reply.ret++;
		addr = (addr & ~(PAGE - 1)) + PAGE;
	}
}

/*
 * After a fork the stack is shared, and after a write to clear_refs all is read-only: write where the measured access
 * will, so that it does not fault for itself.
 */
static __attribute__((noinline)) void settle_stack(void)
{
	volatile char pages[2 * PAGE];

	pages[0] = pages[PAGE] = pages[2 * PAGE - 1] = 0;
}

static void settle_state(struct state *state)
{
	for (unsigned long i = 0; i < sizeof *state; i += PAGE)
		((volatile char *)state)[i] = ((volatile char *)state)[i];
}

static void run_access(struct state *state)
{
	uint64_t *args = state->request.args;
	uint64_t before;

	settle_stack();
	settle_state(state);
	before = min_flt(state);
	before = min_flt(state);
	switch (state->request.order) {
	case LOAD: load(state, args[0], args[1]); break;
	case STORE: store(state, args[0], args[1]); break;
	default: touch(state, args[0], args[1], args[2]); break;
	}
	state->reply.minflt = min_flt(state) - before;
}

/* CPUID 7, ECX bit 4: OSPKE. */
static uint64_t find_pkeys(void)
{
	uint32_t a = 0, b, c = 0, d;

	__asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
	if (a < 7)
		return 0;
	a = 7, c = 0;
	__asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
	return c >> 4 & 1;
}

/* The program's own value: the kernel puts it back after a signal, and the runner's own memory has key 0. */
static uint32_t read_pkru(const struct state *state)
{
	uint32_t value, d;

	if (!state->has_pkeys)
		return 0;
	__asm__ volatile(".byte 0x0f, 0x01, 0xee" : "=a"(value), "=d"(d) : "c"(0));
	return value;
}

static void catch_signals(struct state *state)
{
	stack_t stack = { .ss_sp = state->alt_stack, .ss_size = ALT_STACK };
	struct kernel_sigaction caught = { (void *)on_signal, SA_SIGINFO | SA_ONSTACK | SA_NODEFER | 0x04000000,
					   (void *)restorer, 0 };
	struct kernel_sigaction ignored = { (void *)1, 0x04000000, (void *)restorer, 0 };

	settle_state(state);
	raw(__NR_sigaltstack, (long)&stack, 0, 0, 0, 0, 0);
	raw(__NR_rt_sigaction, SIGSEGV, (long)&caught, 0, 8, 0, 0);
	raw(__NR_rt_sigaction, SIGBUS, (long)&caught, 0, 8, 0, 0);
	raw(__NR_rt_sigaction, SIGILL, (long)&caught, 0, 8, 0, 0);
	raw(__NR_rt_sigaction, SIGTRAP, (long)&caught, 0, 8, 0, 0);
	raw(__NR_rt_sigaction, SIGCHLD, (long)&ignored, 0, 8, 0, 0);
}

static uint64_t parse_hex(const char *text, int digits)
{
	uint64_t value = 0;

	for (; *text && digits; text++, digits--)
		value = value * 16 + (*text <= '9' ? *text - '0' : *text - 'a' + 10);
	return value;
}

static void take_pipe(struct state *state, const char *pipes, uint64_t index)
{
	state->in = parse_hex(pipes + index * 8, 4);
	state->out = parse_hex(pipes + index * 8 + 4, 4);
}

/* Returns the state of the process that goes on: the parent's own, or the child's in the next area. */
static struct state *run_fork(struct state *state, const char *pipes)
{
	uint64_t index = state->request.args[0];
	long pid = raw(__NR_fork, 0, 0, 0, 0, 0, 0);

	if (pid == 0) {
		struct state *child = (struct state *)(state->request.args[1] + index * AREA);
		take_pipe(child, pipes, index);
		catch_signals(child);
		child->has_pkeys = state->has_pkeys;
		child->reply = (struct reply){ 0 };
		return child;
	}
	state->reply.ret = pid;
	return state;
}

static void serve(struct state *state, const char *pipes)
{
	for (;;) {
		uint64_t *a = state->request.args;

		get_exactly(state, &state->request, sizeof state->request);
		state->reply = (struct reply){ 0 };
		switch (state->request.order) {
		case CALL:
			for (uint64_t i = 0; i < state->request.data_len; i++)
				state->data[i] = state->request.data[i];
			for (int i = 1; i < 7; i++)
				if (a[i] >> 32 == IN_DATA)
					a[i] = (uint64_t)state->data + (uint32_t)a[i];
			state->reply.ret = raw(a[0], a[1], a[2], a[3], a[4], a[5], a[6]);
			if (a[0] == __NR_mincore && state->reply.ret == 0)
				state->reply.data_len = (a[2] + PAGE - 1) / PAGE;
			if (a[0] == __NR_shmctl && a[2] == IPC_STAT && state->reply.ret == 0)
				state->reply.data_len = sizeof(struct shmid64_ds);
			if (a[0] == __NR_ioctl)
				state->reply.data_len = state->request.data_len;
			break;
		case FORK:
			state = run_fork(state, pipes);
			break;
		case EXIT:
			raw(__NR_exit_group, 0, 0, 0, 0, 0, 0);
			break;
		case WRPKRU:
			probe_wrpkru(a[0]);
			break;
		default:
			run_access(state);
		}
		state->reply.pkru = read_pkru(state);
		put_exactly(state, &state->reply, sizeof state->reply);
		put_exactly(state, state->data, state->reply.data_len);
	}
}

__attribute__((used)) static void start(long *stack)
{
	char **argv = (char **)(stack + 1);
	struct state *state = (struct state *)parse_hex(argv[1], 16);

	raw(__NR_mmap, (long)state, parse_hex(argv[2], 16), 3, 0x31 /* SHARED | FIXED | ANONYMOUS */, -1, 0);
	take_pipe(state, argv[3], 0);
	catch_signals(state);
	state->has_pkeys = find_pkeys();
	serve(state, argv[3]);
}
