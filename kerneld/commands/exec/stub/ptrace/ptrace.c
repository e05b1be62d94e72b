/* ptrace(2): its requests. Whom a program may trace is kerneld's to say (kerneld/task/ptrace.py), and the host's; the memory of
 * a tracee is kerneld's; its stops are in stops.c. What depends on seccomp filters of the program's own is refused as by a
 * kernel without them. */
#include "trace.h"

#define NR_getppid 110
#define AUDIT_ARCH_X86_64 0xc000003eU
#define SYSCALL_INFO_EXIT 2
#define MESSAGE_EXIT 2		/* PTRACE_EVENTMSG_SYSCALL_EXIT */
#define MEM_INLINE 2		/* of KD_MEM_RW: what is written comes with the request */

struct syscall_info { u32 op, arch; u64 ip, sp, rval; unsigned char is_error; };
#define EXIT_INFO_BYTES 33

/* From now on this process is told of its tracees' stops at once. */
void become_tracer(void)
{
	if (!__atomic_exchange_n(&process.is_tracer, 1, __ATOMIC_SEQ_CST))
		watch_children();
}

/* May this process access another's memory? 0 or -errno. Only programs inside can be traced. */
static long may_trace(struct thread *t, u64 pid)
{
	char name[32];
	u64 whole = process_of(pid);
	if (!whole)
		return -ESRCH;
	memcpy(put_number(name, whole) - 1, "/mem", 5);
	struct answer answer = ask_file(t, name, 0, 0);
	return answer.ret == -ENOENT || answer.ret == -EACCES ? -EPERM : 0;
}

/* The parent becomes the tracer. It is told before, for it may be waiting elsewhere than for its child. vfork's child is traced
 * when it executes a program: a tracer that waits for that can serve nobody. */
static long trace_me(struct thread *t)
{
	char name[32];
	u64 parent = sys0(NR_getppid);
	struct siginfo info = {.signo = SIGSYS, .err = MARK_TRACER, .code = SI_QUEUE};
	memcpy(put_number(name, parent) - 1, "/statm", 7);
	if (ask_file(t, name, 0, 8).ret < 0)
		return -EPERM;
	long ret = sys3(NR_rt_sigqueueinfo, parent, SIGSYS, &info);
	if (ret)
		return -EPERM;
	if (t->is_brief) {
		t->is_traced_by_exec = 1;
		return 0;
	}
	process.traced = 1;
	return sys1(NR_ptrace, PTRACE_TRACEME);
}

static long attach_to(struct thread *t, long request, u64 pid, u64 addr, u64 options)
{
	long ret = may_trace(t, pid);
	if (ret)
		return ret;
	if (request == PTRACE_SEIZE && (addr || options & ~(u64)OPTIONS))
		return -EIO;
	struct tracee *tracee = find_tracee(t, pid) ? 0 : new_tracee(t, pid, 0);
	if (!tracee)
		return -EPERM;
	become_tracer();
	tracee->is_seized = request == PTRACE_SEIZE;
	tracee->options = tracee->is_seized ? options : 0;
	ret = host_ptrace(request, tracee, 0, (void *)(u64)(tracee->is_seized ? options | OUR_OPTIONS : 0));
	if (ret)
		drop_tracee(tracee);
	return ret;
}

/* A word of the tracee's memory: kerneld copies it. */
static long memory_word(struct thread *t, struct tracee *tracee, int is_set, u64 addr, u64 data)
{
	if (!is_set && is_vdso(addr))
		return read_vdso(data, 8, addr) == 8 ? 0 : -EIO;
	u64 args[6] = {process_of(tracee->tid), addr, data, 8, is_set ? MEM_INLINE : 0};
	long ret = ask(t, KD_MEM_RW, args, &data, is_set ? 8 : 0, -1).ret;
	return ret == 8 ? 0 : ret == -EFAULT ? -EFAULT : -EIO;
}

static long put_result(u64 to, const void *from, u64 length)
{
	return user_copy((void *)to, from, length) ? -EFAULT : 0;
}

static long siginfo_call(struct tracee *tracee, int is_set, u64 data)
{
	struct siginfo info;
	if (is_set) {
		if (user_copy(&info, (void *)data, sizeof info))
			return -EFAULT;
		tracee->info = info;
		if (tracee->kind == SIGNAL && BIT(info.signo) & OURS && info.code > 0)
			info.err = MARK_FAULT;	/* the stub takes it for no fault that it has to settle */
		return tracee->kind == SIGNAL ? host_ptrace(PTRACE_SETSIGINFO, tracee, 0, &info) : 0;
	}
	if (tracee->kind == SIGNAL || (tracee->kind == EXIT && tracee->status >> 8 == SIGTRAP && !tracee->is_syscall_end))
		return put_result(data, &tracee->info, sizeof info);
	if (tracee->kind == EXIT || tracee->kind == HELD) {
		memset(&info, 0, sizeof info);
		info.signo = SIGTRAP;
		info.code = tracee->is_syscall_end ? (tracee->status >> 8 & 0xff) : tracee->status >> 8;
		info.fields[0] = (u32)tracee->tid;
		return put_result(data, &info, sizeof info);
	}
	long ret = host_ptrace(PTRACE_GETSIGINFO, tracee, 0, &info);
	return ret ? ret : put_result(data, &info, sizeof info);
}

static long event_message(struct tracee *tracee, u64 data)
{
	u64 message = tracee->is_syscall_end ? MESSAGE_EXIT : tracee->message;
	if (tracee->kind != EXIT && tracee->kind != HELD)
		host_ptrace(PTRACE_GETEVENTMSG, tracee, 0, &message);
	return put_result(data, &message, 8);
}

static long syscall_info(struct tracee *tracee, u64 room, u64 data)
{
	char buffer[128];
	struct user_regs regs;
	long length;
	if (tracee->kind != EXIT && tracee->kind != HELD) {
		length = host_ptrace(PTRACE_GET_SYSCALL_INFO, tracee, sizeof buffer, buffer);
		if (length > 0 && !get_registers(tracee, &regs))
			((struct syscall_info *)buffer)->ip = regs.rip;	/* it may be in its gate */
	} else {
		get_registers(tracee, &regs);
		struct syscall_info info = {0, AUDIT_ARCH_X86_64, regs.rip, regs.rsp, regs.rax, regs.rax > -4096UL};
		info.op = tracee->is_syscall_end ? SYSCALL_INFO_EXIT : 0;
		length = tracee->is_syscall_end ? EXIT_INFO_BYTES : 24;
		memcpy(buffer, &info, sizeof info);
	}
	if (length > 0 && user_copy((void *)data, buffer, (u64)length < room ? (u64)length : room))
		return -EFAULT;
	return length;
}

/* The signals that a tracee blocks: those that its stub lives by are blocked in words only. */
static long signal_mask(struct tracee *tracee, int is_set, u64 size, u64 data)
{
	u64 area = area_of(tracee), at = area + __builtin_offsetof(struct thread, masked), mask, ours;
	if (size != 8)
		return -EINVAL;
	if (is_set) {
		if (user_copy(&mask, (void *)data, 8))
			return -EFAULT;
		if (area)
			poke(tracee, at, mask & OURS);
		ours = mask & ~OURS;
		return host_ptrace(PTRACE_SETSIGMASK, tracee, 8, &ours);
	}
	long ret = host_ptrace(PTRACE_GETSIGMASK, tracee, 8, &mask);
	mask |= area ? peek(tracee, at) : 0;
	return ret ? ret : put_result(data, &mask, 8);
}

static long set_options(struct tracee *tracee, u64 options)
{
	if (options & ~(u64)OPTIONS)
		return -EINVAL;
	tracee->options = options;
	return host_ptrace(PTRACE_SETOPTIONS, tracee, 0, (void *)(options | OUR_OPTIONS));
}

static long listen(struct tracee *tracee)
{
	long ret = host_ptrace(PTRACE_LISTEN, tracee, 0, 0);
	if (!ret)
		tracee->kind = RUNS;
	return ret;
}

/* The requests for which the tracee must be stopped. */
static long stopped_call(struct thread *t, struct tracee *tracee, long request, u64 addr, u64 data)
{
	switch (request) {
	case PTRACE_PEEKTEXT: case PTRACE_PEEKDATA: case PTRACE_POKETEXT: case PTRACE_POKEDATA:
		return memory_word(t, tracee, request >= PTRACE_POKETEXT, addr, data);
	case PTRACE_PEEKUSER: case PTRACE_POKEUSER: case PTRACE_GETREGS: case PTRACE_SETREGS: case PTRACE_GETFPREGS:
	case PTRACE_SETFPREGS: case PTRACE_GETREGSET: case PTRACE_SETREGSET:
		return registers_call(tracee, request, addr, data);
	case PTRACE_CONT: case PTRACE_SYSCALL: case PTRACE_SINGLESTEP:
		return let_go(tracee, request == PTRACE_CONT ? CONT : request == PTRACE_SYSCALL ? SYSCALL : STEP, data);
	case PTRACE_DETACH:
		return detach(tracee, data);
	case PTRACE_SETOPTIONS:
		return set_options(tracee, data);
	case PTRACE_GETEVENTMSG:
		return event_message(tracee, data);
	case PTRACE_GETSIGINFO: case PTRACE_SETSIGINFO:
		return siginfo_call(tracee, request == PTRACE_SETSIGINFO, data);
	case PTRACE_GETSIGMASK: case PTRACE_SETSIGMASK:
		return signal_mask(tracee, request == PTRACE_SETSIGMASK, addr, data);
	case PTRACE_GET_SYSCALL_INFO:
		return syscall_info(tracee, addr, data);
	case PTRACE_LISTEN:
		return listen(tracee);
	}
	return -EIO;
}

long sys_ptrace(struct thread *t, const u64 *args)
{
	long request = args[0];
	if (request == PTRACE_TRACEME)
		return trace_me(t);
	if (request == PTRACE_ATTACH || request == PTRACE_SEIZE)
		return attach_to(t, request, args[1], args[2], args[3]);
	struct tracee *tracee = (int)args[1] > 0 ? find_tracee(t, args[1]) : 0;
	if (!tracee)
		return -ESRCH;
	if (request == PTRACE_KILL)
		return host_ptrace(request, tracee, 0, 0);
	if (request == PTRACE_INTERRUPT)
		return tracee->is_seized ? host_ptrace(request, tracee, 0, 0) : -EIO;
	if (tracee->kind == RUNS)
		serve_tracees(t);
	return tracee->kind == RUNS ? -ESRCH : stopped_call(t, tracee, request, args[2], args[3]);
}
