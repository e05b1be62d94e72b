/* The registers of a stopped tracee. The host has them, but for a tracee that stands in its stub (at the event of a fork, say):
 * then the program's are in the frame of the stub's handler. */
#include "trace.h"

#define NT_PRSTATUS 1
#define NT_PRFPREG 2
#define NT_X86_XSTATE 0x202
#define FXSAVE_BYTES 512
#define SW_RESERVED 464
#define MOST_XSTATE 0x8000UL
#define DEBUGREG_START 848
#define DEBUGREG_END 912
#define USER_BYTES 912
#define ERESTARTNOINTR 513
#define ERESTART_RESTARTBLOCK 516

struct iovec { u64 base, length; };

/* The saved registers of a tracee that stands in its stub, and where they are in its memory; 0 for one that does not. */
static u64 find_saved(struct tracee *tracee, const struct user_regs *regs, struct ucontext *saved)
{
	u64 area = zone_of(regs->rip) == IN_STUB ? area_by_registers(regs) : 0;
	u64 at = area ? peek(tracee, area + __builtin_offsetof(struct thread, saved)) : 0;
	for (u64 i = 0; at && i < sizeof *saved / 8; i++)
		((u64 *)saved)[i] = peek(tracee, at + i * 8);
	return at;
}

/* Where the registers at the beginning of a struct sigcontext are in a struct user_regs, as words. */
#define AT(name) (__builtin_offsetof(struct user_regs, name) / 8)
static const unsigned char places[] = {AT(r8), AT(r9), AT(r10), AT(r11), AT(r12), AT(r13), AT(r14), AT(r15), AT(rdi), AT(rsi), AT(rbp),
				       AT(rbx), AT(rdx), AT(rax), AT(rcx), AT(rsp), AT(rip), AT(eflags)};

long get_registers(struct tracee *tracee, struct user_regs *regs)
{
	struct ucontext saved;
	long ret = host_ptrace(PTRACE_GETREGS, tracee, 0, regs);
	if (!ret && zone_of(regs->rip) == IN_GATE)
		read_gate(tracee, regs);
	if (ret || !find_saved(tracee, regs, &saved))
		return ret;
	for (u64 i = 0; i < sizeof places; i++)
		((u64 *)regs)[places[i]] = ((u64 *)&saved.mc)[i];
	/* in the middle of a call */
	regs->orig_rax = regs->rax;
	regs->rax = -ENOSYS;
	return 0;
}

/* A call that had time left cannot go on with the rest of it once the tracer has had the program do something else. */
static struct user_regs *literal(struct user_regs *regs)
{
	if ((long)regs->orig_rax >= 0 && (long)regs->rax == -ERESTART_RESTARTBLOCK)
		regs->rax = -ERESTARTNOINTR;
	return regs;
}

/* Where only what is not of the call changes, the call goes on in the gate. Else the program makes it again, or does something
 * else. */
static long set_in_gate(struct tracee *tracee, const struct user_regs *now, struct user_regs *wanted)
{
	struct user_regs seen = *now;
	read_gate(tracee, &seen);
	if (wanted->rip == seen.rip && wanted->rax == seen.rax && wanted->rdi == seen.rdi && wanted->rsi == seen.rsi &&
	    wanted->rdx == seen.rdx && wanted->r10 == seen.r10 && wanted->r8 == seen.r8 && wanted->r9 == seen.r9) {
		wanted->rip = now->rip;
		wanted->rdi = now->rdi, wanted->rsi = now->rsi, wanted->rdx = now->rdx;
		wanted->r10 = now->r10, wanted->r8 = now->r8, wanted->r9 = now->r9;
	} else {
		literal(wanted);
	}
	return host_ptrace(PTRACE_SETREGS, tracee, 0, wanted);
}

long set_registers(struct tracee *tracee, const struct user_regs *regs)
{
	struct user_regs now, wanted = *regs;
	struct ucontext saved;
	u64 at;
	long ret = host_ptrace(PTRACE_GETREGS, tracee, 0, &now);
	if (!ret && zone_of(now.rip) == IN_GATE)
		return set_in_gate(tracee, &now, &wanted);
	if (ret || !(at = find_saved(tracee, &now, &saved)))
		return ret ? ret : host_ptrace(PTRACE_SETREGS, tracee, 0, literal(&wanted));
	wanted.rax = saved.mc.rax;	/* the call's number: it is its end that sets the result */
	for (u64 i = 0; i < sizeof places; i++) {
		u64 word = ((u64 *)&wanted)[places[i]];
		if (word != ((u64 *)&saved.mc)[i])
			poke(tracee, at + __builtin_offsetof(struct ucontext, mc) + i * 8, word);
	}
	now.fs_base = regs->fs_base;
	now.gs_base = regs->gs_base;
	return host_ptrace(PTRACE_SETREGS, tracee, 0, &now);
}

/* Vector registers, as many bytes as `length` says, at the most those there are. `is_set`: to the tracee. */
static long vector_registers(struct tracee *tracee, u64 type, char *state, u64 *length, int is_set)
{
	struct user_regs regs;
	struct ucontext saved;
	struct iovec vector = {(u64)state, *length};
	long ret = host_ptrace(PTRACE_GETREGS, tracee, 0, &regs);
	u64 at = ret ? 0 : find_saved(tracee, &regs, &saved);
	if (ret)
		return ret;
	if (!at || !is_set)
		ret = host_ptrace(is_set ? PTRACE_SETREGSET : PTRACE_GETREGSET, tracee, type, &vector);
	*length = vector.length;
	for (u64 i = 0; at && !ret && i + 8 <= *length; i += 8) {
		if (i >= SW_RESERVED && i < FXSAVE_BYTES)
			continue;
		if (is_set)
			poke(tracee, saved.mc.fpstate + i, *(u64 *)(state + i));
		else
			*(u64 *)(state + i) = peek(tracee, saved.mc.fpstate + i);
	}
	return ret;
}

/* PTRACE_GETREGSET and PTRACE_SETREGSET, which have an iovec, and the older ones of vector registers. */
static long regset(struct tracee *tracee, u64 type, struct iovec *vector, int is_set)
{
	static char state[MOST_XSTATE];
	static u32 lock;
	struct user_regs regs;
	long ret;
	if (type == NT_PRSTATUS) {
		vector->length = vector->length < sizeof regs ? vector->length : sizeof regs;
		if (vector->length % 8)
			return -EINVAL;
		ret = get_registers(tracee, &regs);
		if (ret)
			return ret;
		if (!is_set)
			return user_copy((void *)vector->base, &regs, vector->length) ? -EFAULT : 0;
		return user_copy(&regs, (void *)vector->base, vector->length) ? -EFAULT : set_registers(tracee, &regs);
	}
	if (type != NT_PRFPREG && type != NT_X86_XSTATE)
		return -EINVAL;
	vector->length = vector->length < MOST_XSTATE ? vector->length : MOST_XSTATE;
	while (__atomic_exchange_n(&lock, 1, __ATOMIC_ACQUIRE))
		sys0(NR_sched_yield);
	ret = is_set && user_copy(state, (void *)vector->base, vector->length) ? -EFAULT
									     : vector_registers(tracee, type, state, &vector->length, is_set);
	if (!ret && !is_set && user_copy((void *)vector->base, state, vector->length))
		ret = -EFAULT;
	__atomic_store_n(&lock, 0, __ATOMIC_RELEASE);
	return ret;
}

/* PTRACE_PEEKUSER: `data` is where the program wants the word; PTRACE_POKEUSER: it is the word. */
static long user_word(struct tracee *tracee, int is_set, u64 addr, u64 data)
{
	struct user_regs regs;
	u64 word = 0;
	long ret;
	if (addr % 8 || addr >= USER_BYTES)
		return -EIO;
	if (addr < sizeof regs) {
		ret = get_registers(tracee, &regs);
		word = *(u64 *)((char *)&regs + addr);
		*(u64 *)((char *)&regs + addr) = data;
		if (!ret && is_set)
			ret = set_registers(tracee, &regs);
	} else {
		ret = host_ptrace(is_set ? PTRACE_POKEUSER : PTRACE_PEEKUSER, tracee, addr, is_set ? (void *)data : &word);
		if (!ret && is_set && addr == AT_DR7)
			tracee->dr7 = data;
	}
	return ret || is_set ? ret : user_copy((void *)data, &word, 8) ? -EFAULT : 0;
}

/* The requests about registers. */
long registers_call(struct tracee *tracee, long request, u64 addr, u64 data)
{
	struct iovec vector = {data, sizeof(struct user_regs)};
	long ret;
	switch (request) {
	case PTRACE_PEEKUSER: case PTRACE_POKEUSER:
		return user_word(tracee, request == PTRACE_POKEUSER, addr, data);
	case PTRACE_GETREGS: case PTRACE_SETREGS:
		return regset(tracee, NT_PRSTATUS, &vector, request == PTRACE_SETREGS);
	case PTRACE_GETFPREGS: case PTRACE_SETFPREGS:
		vector.length = FXSAVE_BYTES;
		return regset(tracee, NT_PRFPREG, &vector, request == PTRACE_SETFPREGS);
	}
	if (user_copy(&vector, (void *)data, sizeof vector))
		return -EFAULT;
	ret = regset(tracee, addr, &vector, request == PTRACE_SETREGSET);
	return ret ? ret : user_copy((void *)(data + 8), &vector.length, 8) ? -EFAULT : 0;
}
