/* A tracer: what ptrace(2) and waitpid(2) tell of a child's calls, signals, steps and memory. Each line is the same inside and
 * outside. */
#include "tracer.h"

struct syscall_info {
	uint8_t op, pad[3];
	uint32_t arch;
	uint64_t ip, sp;
	union {
		struct { uint64_t nr, args[6]; } entry;
		struct { int64_t rval; uint8_t is_error; } exit;
	};
};

static void makes_calls(void)
{
	char byte = 'x';
	struct timespec brief = {0, 1000};
	struct pollfd poll_one = {ends[0], POLLIN, 0};
	syscall(SYS_getppid);
	syscall(SYS_lseek, -1, 0, SEEK_CUR);
	syscall(SYS_write, ends[1], &byte, 1);
	syscall(SYS_poll, &poll_one, 1, -1);
	syscall(SYS_read, ends[0], &byte, 1);
	syscall(SYS_nanosleep, &brief, 0);
	syscall(SYS_mprotect, 1, 1, 1);
	void *page = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	*(char *)page = byte;
	munmap(page, 4096);
	syscall(1000, 1, 2, 3);
}

/* PTRACE_SYSCALL: each call's beginning and end. */
static void calls(void)
{
	pid_t pid = traced(makes_calls, PTRACE_O_TRACESYSGOOD);
	int status;
	for (;;) {
		struct syscall_info info;
		ptrace(PTRACE_SYSCALL, pid, 0, 0);
		status = wait_for(pid);
		if (!WIFSTOPPED(status))
			break;
		struct user_regs_struct regs = registers_of(pid);
		long length = ptrace(PTRACE_GET_SYSCALL_INFO, pid, sizeof info, &info);
		unsigned long message = 0;
		ptrace(PTRACE_GETEVENTMSG, pid, 0, &message);
		printf("%#x op %d of %ld bytes, message %lu, ip %d sp %d, call %lld", WSTOPSIG(status), info.op, length, message,
		       info.ip == regs.rip, info.sp == regs.rsp, regs.orig_rax);
		if (info.op == 1)
			printf(" = %lu with %d, rax %lld\n", info.entry.nr, (int)(info.entry.args[0] == regs.rdi), regs.rax);
		else if (regs.orig_rax == SYS_getppid || regs.orig_rax == SYS_mmap)
			printf(" gives %d\n", info.exit.rval == (long)regs.rax);
		else
			printf(" gives %lld, error %d\n", regs.rax, info.exit.is_error);
	}
	printf("calls: %s\n", name_of_status(status));
}

static void calls_getppid(void)
{
	handled = syscall(SYS_getppid) == -77 ? 40 : 41;
	handled += syscall(SYS_dup, 0) == -1 && errno == 77 ? 10 : 0;
}

/* A tracer changes a call into none, and its result. */
static void changes(void)
{
	pid_t pid = traced(calls_getppid, PTRACE_O_TRACESYSGOOD);
	for (int i = 0; i < 4; i++) {
		ptrace(PTRACE_SYSCALL, pid, 0, 0);
		wait_for(pid);
		struct user_regs_struct regs = registers_of(pid);
		if (i == 2)
			regs.orig_rax = -1;
		if (i % 2)
			regs.rax = -77;
		ptrace(PTRACE_SETREGS, pid, 0, &regs);
	}
	ptrace(PTRACE_CONT, pid, 0, 0);
	expect("a call that is changed", pid);
}

static void raises(void)
{
	signal(SIGUSR1, handler);
	signal(SIGUSR2, handler);
	raise(SIGUSR1);
	raise(SIGUSR1);
	raise(SIGUSR1);
}

/* A signal is delivered, suppressed, exchanged for another. */
static void signals(void)
{
	static const int given[] = {SIGUSR1, 0, SIGUSR2};
	pid_t pid = traced(raises, 0);
	ptrace(PTRACE_CONT, pid, 0, 0);
	for (int i = 0; i < 3; i++) {
		siginfo_t info;
		expect("a signal", pid);
		ptrace(PTRACE_GETSIGINFO, pid, 0, &info);
		printf("%d code %d from itself %d\n", info.si_signo, info.si_code, info.si_pid == pid);
		ptrace(PTRACE_CONT, pid, 0, given[i]);
	}
	expect("three signals", pid);
}

static void faults(void)
{
	*(volatile int *)(word + 9) = 1;
}

static void faults_and_repairs(void)
{
	struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESETHAND};
	sigaction(SIGSEGV, &action, 0);
	faults();
}

/* What the program has done wrong is shown, and no fault that kerneld settles. */
static void crashes(void (*body)(void))
{
	siginfo_t info;
	pid_t pid = traced(body, 0);
	ptrace(PTRACE_CONT, pid, 0, 0);
	for (int i = 0; i < 2; i++) {
		int status = wait_for(pid);
		printf("a crash: %s\n", name_of_status(status));
		if (!WIFSTOPPED(status))
			return;
		ptrace(PTRACE_GETSIGINFO, pid, 0, &info);
		printf("%d code %d errno %d at %p, in the program %d\n", info.si_signo, info.si_code, info.si_errno, info.si_addr,
		       registers_of(pid).rip - (unsigned long)faults < 64);
		ptrace(PTRACE_CONT, pid, 0, SIGSEGV);
	}
	expect("crashed", pid);
}

__attribute__((noinline)) static long marked(long a)
{
	__asm__ volatile("" : "+r"(a));
	return a + word;
}

static void is_broken(void)
{
	handled = marked(30) + marked(40);
}

/* Breakpoints: a word of the program's text is changed, in this child alone; its memory is read and written. */
static void breakpoints(void)
{
	pid_t pid = traced(is_broken, 0);
	errno = 0;
	long text = ptrace(PTRACE_PEEKTEXT, pid, marked, 0);
	printf("text read: %s, as here %d\n", refusal(text), text == *(long *)marked);
	printf("poke: %ld\n", ptrace(PTRACE_POKETEXT, pid, marked, (text & ~0xffL) | 0xcc));
	ptrace(PTRACE_POKEDATA, pid, &word, 3L);
	printf("here: %ld\n", marked(0));
	for (int i = 0; i < 2; i++) {
		ptrace(PTRACE_CONT, pid, 0, 0);
		expect("breakpoint", pid);
		struct user_regs_struct regs = registers_of(pid);
		printf("behind it %d, argument %lld\n", regs.rip == (unsigned long)marked + 1, regs.rdi);
		regs.rip--;
		ptrace(PTRACE_SETREGS, pid, 0, &regs);
		ptrace(PTRACE_POKETEXT, pid, marked, text);
		ptrace(PTRACE_SINGLESTEP, pid, 0, 0);
		expect("stepped", pid);
		ptrace(PTRACE_POKETEXT, pid, marked, (text & ~0xffL) | 0xcc);
	}
	ptrace(PTRACE_CONT, pid, 0, 0);
	expect("broken", pid);
}

static char *fresh;

__attribute__((naked, noinline)) static void walks(void)
{
	__asm__("mov fresh_page(%rip), %rdx\n movb $1, (%rdx)\n mov $110, %eax\n syscall\n mov $32, %eax\n mov $-1, %edi\n syscall\n"
		"nop\n movb $2, 1(%rdx)\n .globl walked\n walked: ret\n");
}
char *fresh_page;
extern char walked[];

static void steps_on(void)
{
	fresh = fresh_page = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	raise(SIGTRAP);
	walks();
	handled = fresh[0] + fresh[1];
}

/* Each instruction is one step: a fault, a call that the host makes, and one that the stub sees. */
static void steps(void)
{
	pid_t pid = traced(steps_on, 0);
	unsigned long at = 0;
	int count = 0;
	ptrace(PTRACE_CONT, pid, 0, 0);
	expect("before the steps", pid);
	for (int i = 0; i < 1000 && at != (unsigned long)walked; i++) {
		siginfo_t info = {0};
		ptrace(PTRACE_SINGLESTEP, pid, 0, 0);
		wait_for(pid);
		at = registers_of(pid).rip;
		ptrace(PTRACE_GETSIGINFO, pid, 0, &info);
		if (at - (unsigned long)walks < 64)
			count += info.si_signo == SIGTRAP;
	}
	printf("steps: %d\n", count);
	ptrace(PTRACE_CONT, pid, 0, 0);
	expect("stepped", pid);
}

static void is_watched(void)
{
	raise(SIGTRAP);
	word = 20;
	syscall(SYS_getcwd, &word, 8);
	word = 30;
}

/* A word is watched by the processor. The kernel's own writes do not count. */
static void watches(void)
{
	pid_t pid = traced(is_watched, 0);
	ptrace(PTRACE_CONT, pid, 0, 0);
	expect("before", pid);
	ptrace(PTRACE_POKEUSER, pid, offsetof(struct user, u_debugreg[0]), &word);
	if (ptrace(PTRACE_POKEUSER, pid, offsetof(struct user, u_debugreg[7]), 0xd0001L)) {
		printf("no watchpoints here\n");
		kill(pid, SIGKILL);
		wait_for(pid);
		return;
	}
	for (int i = 0; i < 2; i++) {
		ptrace(PTRACE_CONT, pid, 0, 0);
		int status = wait_for(pid);
		printf("watched: %s, now %ld\n", name_of_status(status), ptrace(PTRACE_PEEKDATA, pid, &word, 0));
	}
	ptrace(PTRACE_CONT, pid, 0, 0);
	expect("watched", pid);
}

static int file;

static void uses_file(void)
{
	char *page = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	page[0] = 1;
	raise(SIGTRAP);
	handled = page[0];
	raise(SIGTRAP);
	handled = page[0];
}

/* Memory of a stopped tracee is written, read, and taken away: nobody waits for the tracee. */
static void takes_away(void)
{
	siginfo_t info;
	long value = 9, there = 0;
	struct iovec ours = {&there, sizeof there}, theirs = {(void *)&word, sizeof word};
	file = memfd_create("shared", 0);
	if (ftruncate(file, 4096))
		return;
	pid_t pid = traced(uses_file, 0);
	ptrace(PTRACE_CONT, pid, 0, 0);
	expect("it has a page", pid);
	if (pwrite(file, "\7", 1, 0) != 1)
		return;
	ptrace(PTRACE_POKEDATA, pid, &word, value);
	ssize_t length = process_vm_readv(pid, &ours, 1, &theirs, 1, 0);
	printf("read %zd: %ld\n", length, there);
	ptrace(PTRACE_CONT, pid, 0, 0);
	expect("it has read", pid);
	printf("truncated: %d\n", ftruncate(file, 0));
	ptrace(PTRACE_CONT, pid, 0, 0);
	expect("it has none", pid);
	ptrace(PTRACE_GETSIGINFO, pid, 0, &info);
	printf("signal %d code %d\n", info.si_signo, info.si_code);
	ptrace(PTRACE_CONT, pid, 0, SIGBUS);
	expect("it ends", pid);
	close(file);
}

static void refusals(void)
{
	unsigned char state[4096];
	struct iovec vector = {state, sizeof state};
	unsigned long mask = 0;
	pid_t pid = traced(pauses, 0);
	errno = 0;
	printf("itself: %s\n", refusal(ptrace(PTRACE_ATTACH, getpid(), 0, 0)));
	printf("twice: %s\n", refusal(ptrace(PTRACE_SEIZE, pid, 0, 0)));
	printf("nobody: %s\n", refusal(ptrace(PTRACE_ATTACH, 0x3fffffff, 0, 0)));
	printf("not a tracee: %s\n", refusal(ptrace(PTRACE_CONT, getppid(), 0, 0)));
	printf("options: %s\n", refusal(ptrace(PTRACE_SETOPTIONS, pid, 0, 1 << 30)));
	printf("request: %s\n", refusal(ptrace(0x4333, pid, 0, 0)));
	printf("bad address: %s\n", refusal(ptrace(PTRACE_PEEKDATA, pid, 16, 0)));
	printf("bad poke: %s\n", refusal(ptrace(PTRACE_POKEDATA, pid, 16, 0)));
	printf("bad offset: %s\n", refusal(ptrace(PTRACE_PEEKUSER, pid, 3, 0)));
	printf("interrupt: %s\n", refusal(ptrace(PTRACE_INTERRUPT, pid, 0, 0)));
	printf("signal: %s\n", refusal(ptrace(PTRACE_CONT, pid, 0, 99)));
	printf("xstate: %ld, has x87 %d\n", ptrace(PTRACE_GETREGSET, pid, NT_X86_XSTATE, &vector), vector.iov_len >= 576);
	printf("mask: %ld", ptrace(0x420a, pid, 8, &mask));
	mask |= 1UL << (SIGSEGV - 1);
	ptrace(0x420b, pid, 8, &mask);
	mask = 0;
	ptrace(0x420a, pid, 8, &mask);
	printf(", with SIGSEGV %lu\n", mask >> (SIGSEGV - 1) & 1);
	ptrace(PTRACE_KILL, pid, 0, 0);
	expect("PTRACE_KILL", pid);
	printf("no more children: %d %s\n", waitpid(-1, 0, __WALL), strerrorname_np(errno));
}

int main(int argc, char **argv)
{
	if (begin(argc, argv))
		return 1;
	calls();
	changes();
	signals();
	crashes(faults);
	crashes(faults_and_repairs);
	breakpoints();
	steps();
	watches();
	takes_away();
	refusals();
	return 0;
}
