/* A system call of the program has come: whose is it? kerneld's (memory.c), the stub's (below), or the host's.
 */
#include "native.h"
#include "proc/hidden.h"

#define PR_SET_SECCOMP 22
#define PR_SET_MM 35
#define PR_SET_SYSCALL_USER_DISPATCH 59
#define PR_SET_MDWE 65
#define PR_GET_MDWE 66
#define PR_SET_DUMPABLE 4
#define PR_SET_THP_DISABLE 41
#define PR_SET_MEMORY_MERGE 67
#define PR_GET_MEMORY_MERGE 68
#define PR_SET_VMA 0x53564d41
#define SOL_SOCKET 1
#define SO_RCVLOWAT 18
#define ANON_VMA_NAME_MAX_LEN 80
#define F_DUPFD 0
#define F_DUPFD_CLOEXEC 1030
#define CLONE_VFORK 0x4000
#define CLONE_VM 0x100
#define CLOSE_RANGE_UNSHARE 2
#define WCLONE 0x80000000UL

int is_hidden(u64 fd)
{
	return (int)fd >= process.hidden_fds && (int)fd < process.hidden_fds + 1024;
}

/* Calls that could reach the descriptors that are not the program's. 1 and a result, or 0: the host's. */
static int descriptor_call(const u64 *args, long nr, long *ret)
{
	switch (nr) {
	case NR_close:
		*ret = -EBADF;
		return is_hidden(args[0]);
	case NR_dup2: case NR_dup3:
		*ret = is_hidden(args[0]) || is_hidden(args[1]) ? -EBADF : sys3(nr, args[0], args[1], args[2]);
		return 1;
	case NR_dup:
		*ret = is_hidden(args[0]) ? -EBADF : sys1(nr, args[0]);
		return 1;
	case NR_close_range: {
		u64 low = args[0] & 0xffffffff, high = args[1] & 0xffffffff, first = process.hidden_fds, last = first + 1023;
		if (low > high || high < first || low > last)
			return 0;
		*ret = low < first ? sys3(nr, low, first - 1, args[2]) : args[2] & CLOSE_RANGE_UNSHARE ? sys3(nr, ~0U, ~0U, args[2]) : 0;
		if (!*ret && high > last)
			*ret = sys3(nr, last + 1, high, args[2] & ~CLOSE_RANGE_UNSHARE);
		return 1;
	}
	case NR_fcntl: {
		int is_dup = args[1] == F_DUPFD || args[1] == F_DUPFD_CLOEXEC;
		*ret = is_hidden(args[0]) ? -EBADF : is_dup && is_hidden(args[2]) ? -EINVAL : 0;
		return *ret < 0;
	}
	}
	return 0;
}

/* The name of memory travels with the request: as much as there is, up to its NUL. */
static long set_vma(struct thread *t, const u64 *args)
{
	char name[ANON_VMA_NAME_MAX_LEN];
	u64 got = args[4] ? copy_in((u64)name, args[4], sizeof name) : 0, length = 0;
	while (length < got && name[length])
		length++;
	int is_whole = length < got || got == sizeof name;
	return ask(t, NR_prctl, args, name, !is_whole ? 0 : length < got ? length + 1 : got, -1).ret;
}

static int prctl_call(struct thread *t, const u64 *args, long *ret)
{
	switch ((int)args[0]) {
	case PR_SET_MEMORY_MERGE: case PR_GET_MEMORY_MERGE: case PR_SET_MDWE: case PR_GET_MDWE:
		*ret = ask_ret(t, NR_prctl, args);
		return 1;
	case PR_SET_THP_DISABLE:
		/* The host's too: /proc/PID/status tells it. */
		*ret = ask_ret(t, NR_prctl, args);
		if (!*ret)
			sys5(NR_prctl, PR_SET_THP_DISABLE, args[1], 0, 0, 0);
		return 1;
	case PR_SET_DUMPABLE:
		*ret = sys5(NR_prctl, PR_SET_DUMPABLE, args[1], 0, 0, 0);
		if (!*ret)
			ask_ret(t, NR_prctl, args);
		return 1;
	case PR_SET_VMA:
		*ret = set_vma(t, args);
		return 1;
	case PR_SET_SECCOMP: case PR_SET_MM: case PR_SET_SYSCALL_USER_DISPATCH:
		*ret = -EINVAL;
		return 1;
	}
	return 0;
}

/* readlink("/proc/self/exe"), and of another program inside: the program's, not the stub's. And of a view's descriptor. */
static int readlink_call(struct thread *t, const u64 *args, long nr, long *ret)
{
	int at = nr == NR_readlinkat;
	char path[MOST_EXE] = {0}, program[EXE_BYTES];
	long length = user_strlen((const char *)args[at]);
	if (length < 0 || length >= MOST_EXE || user_copy(path, (const char *)args[at], length))
		return 0;
	u64 exe = exe_of(path, program), size = args[at + 2];
	if (!exe)
		exe = view_link(t, path, at ? (int)args[0] : AT_FDCWD, program, sizeof program);
	if (!exe)
		return 0;
	*ret = (int)size <= 0 ? -EINVAL : user_copy((void *)args[at + 1], program, exe < size ? exe : size) ? -EFAULT
													   : (long)(exe < size ? exe : size);
	return 1;
}

/* The flags about memory are kerneld's: with the host's READ_IMPLIES_EXEC each of the TLB's mappings would be executable.
 * The host has the others: what uname() says, how select() ends. */
long sys_personality(struct thread *t, u64 wanted)
{
	u64 args[6] = {wanted};
	if ((u32)wanted != ASKS_PERSONALITY) {
		long ret = sys1(NR_personality, (u32)wanted & ~PERSONALITY_OF_MEMORY);
		if (ret < 0)
			return ret;
	}
	return ask_ret(t, NR_personality, args);
}

/* A thread ends, or a process that shares this memory. */
static void __attribute__((noreturn)) end_thread(struct thread *t, const u64 *args)
{
	leave_futexes(t, 1);
	if (t->is_sharer) {
		ask_ret(t, NR_exit_group, args);
		sys1(NR_exit, args[0]);
	}
	sys1(NR_close, t->conn);
	leave_area(t, args[0]);
}

static void __attribute__((noreturn)) end_process(struct thread *t, const u64 *args)
{
	leave_futexes(t, t->is_sharer);
	if (!t->is_sharer && !t->is_borrower)
		__atomic_store_n(&process.is_ending, 1, __ATOMIC_SEQ_CST);
	ask_ret(t, NR_exit_group, args);
	/* kerneld has sent the agent away. An orphan would become a child of whoever takes orphans (init, a subreaper),
	 * and would be one that the program never had. */
	if (!t->is_sharer && !process.has_sharers)
		sys4(NR_wait4, -1, 0, WCLONE, 0);
	sys1(NR_exit_group, args[0]);
	__builtin_unreachable();
}

/* The calls by which tasks begin and end. */
static int task_call(struct thread *t, struct ucontext *uc, const u64 *args, long nr, long *ret)
{
	switch (nr) {
	case NR_clone: {
		u64 rest[4] = {args[1], args[2], args[3], args[4]};
		*ret = sys_clone(t, uc, args[0], rest);
		return 1;
	}
	case NR_clone3:
		*ret = sys_clone3(t, uc, args[0], args[1]);
		return 1;
	case NR_fork: case NR_vfork: {
		u64 none[4] = {0};
		*ret = sys_clone(t, uc, SIGCHLD | (nr == NR_vfork ? CLONE_VFORK | CLONE_VM : 0), none);
		return 1;
	}
	case NR_execve:
		*ret = sys_exec(t, uc, -100, (const char *)args[0], args + 1, 0);
		return 1;
	case NR_execveat:
		*ret = sys_exec(t, uc, args[0], (const char *)args[1], args + 2, args[4]);
		return 1;
	case NR_set_tid_address:
		t->clear_tid = args[0];
		return 0;
	case NR_set_robust_list:
		if (args[1] == 24)
			t->robust = args[0];
		return 0;
	case NR_exit:
		end_thread(t, args);
	case NR_exit_group:
		end_process(t, args);
	}
	return 0;
}

/* Other calls that are the stub's own. 1 and a result, or 0. */
static int own_call(struct thread *t, const u64 *args, long nr, long *ret)
{
	switch (nr) {
	case NR_prctl:
		return prctl_call(t, args, ret);
	case NR_ptrace:
		*ret = sys_ptrace(t, args);
		return 1;
	case NR_personality:
		*ret = sys_personality(t, args[0]);
		return 1;
	case NR_sysinfo:
		return sysinfo_call(t, args, ret);
	case NR_readlink: case NR_readlinkat:
		return readlink_call(t, args, nr, ret);
	case 54:	/* setsockopt() */
		process.has_low_water |= (int)args[1] == SOL_SOCKET && (int)args[2] == SO_RCVLOWAT;
		return 0;
	case 78: case 217:	/* getdents() */
		return getdents_call(t, args, nr, ret);
	case 105: case 106: case 113: case 114: case 117: case 119: case 122: case 123: case 126: case 272: case 308:
		/* setuid() and its like, capset(), unshare(), setns() */
		*ret = direct_call(t, nr, args);
		ask_ret(t, KD_CREDS, args);
		return 1;
	}
	return descriptor_call(args, nr, ret);
}

void on_syscall(struct thread *t, struct ucontext *uc)
{
	long nr = (int)uc->mc.rax, ret;
	u64 args[6] = {uc->mc.rdi, uc->mc.rsi, uc->mc.rdx, uc->mc.r10, uc->mc.r8, uc->mc.r9};
	if (nr == NR_rt_sigreturn) {
		sys_sigreturn(t, uc);
		return;
	}
	if (memory_call(t, uc, args, nr, &ret) || shadow_call(t, args, nr, &ret) || signal_call(t, uc, args, nr, &ret) ||
	    task_call(t, uc, args, nr, &ret) || own_call(t, args, nr, &ret)) {
		uc->mc.rax = ret;
		return;
	}
	if (file_call(t, args, nr, &ret))
		uc->mc.rax = ret;
	else
		host_call(t, uc, nr, args);
}
