/* A tracer: tasks that it attaches to, that its tracees make, that execute another program, and a tracer that ends. Each line is
 * the same inside and outside. */
#include "tracer.h"

static void reads_later(void)
{
	char text[8] = "";
	struct pollfd poll_one = {ends[0], POLLIN, 0};
	int polled = poll(&poll_one, 1, 10000);
	handled = read(ends[0], text, 3) + polled + poll_one.revents + text[2] - 'c';
}

/* Wait until a task is in a system call of this number: as long as it takes, see begin(). */
static void wait_until_in_call(pid_t pid, long number)
{
	char path[64], state[64];
	snprintf(path, sizeof path, "/proc/%d/syscall", pid);
	for (;;) {
		FILE *file = fopen(path, "r");
		if (!file) {
			perror(path);
			return;
		}
		int is_told = fgets(state, sizeof state, file) != 0;
		fclose(file);
		if (is_told && atol(state) == number && state[0] != 'r')
			return;
		sched_yield();
	}
}

/* One that is not traced and waits: it is seized, interrupted, looked at, let go, and its call goes on. */
static void attaches(int seizes)
{
	fflush(stdout);
	pid_t pid = fork();
	if (!pid) {
		if (write(back[1], "r", 1) != 1)
			_exit(99);
		reads_later();
		_exit(handled);
	}
	char byte;
	if (read(back[0], &byte, 1) != 1)
		return;
	wait_until_in_call(pid, SYS_poll);
	printf("attach: %ld\n", ptrace(seizes ? PTRACE_SEIZE : PTRACE_ATTACH, pid, 0, 0));
	if (seizes)
		printf("while it runs: %s\n", refusal(ptrace(PTRACE_PEEKDATA, pid, &word, 0)));
	if (seizes)
		ptrace(PTRACE_INTERRUPT, pid, 0, 0);
	expect("attached", pid);
	struct user_regs_struct regs = registers_of(pid);
	printf("in call %lld with %lld, two bytes back a syscall %d\n", regs.orig_rax, regs.rsi,
	       (ptrace(PTRACE_PEEKTEXT, pid, regs.rip - 2, 0) & 0xffff) == 0x050f);
	if (write(ends[1], "abc", 3) != 3)
		return;
	printf("detach: %ld\n", ptrace(PTRACE_DETACH, pid, 0, 0));
	expect("its call", pid);
}

static int thread_of(void *nothing)
{
	return nothing != 0;
}

static void makes_children(void)
{
	char *stack = malloc(65536);
	if (!fork())
		_exit(1);
	wait(0);
	if (!vfork())
		_exit(2);
	wait(0);
	clone(thread_of, stack + 65536, CLONE_VM | CLONE_FS | CLONE_FILES, 0);
	waitpid(-1, 0, __WALL);
	execl("/proc/self/exe", "tracer", "as", "another", (char *)0);
}

/* The events of new tasks, and of an execve; the tasks are traced too. */
static void events(void)
{
	long options = PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACECLONE | PTRACE_O_TRACEEXEC | PTRACE_O_TRACEEXIT |
		       PTRACE_O_TRACEVFORKDONE;
	pid_t pid = traced(makes_children, options), who, child = 0;
	int status, begun = 0, done = 0;
	ptrace(PTRACE_CONT, pid, 0, 0);
	while ((who = waitpid(-1, &status, __WALL)) > 0) {
		unsigned long message = 0;
		int event = status >> 16;
		if (event == PTRACE_EVENT_VFORK_DONE) {
			done++;	/* before or after the child has ended */
		} else if (who == pid || event || !WIFSTOPPED(status)) {
			printf("%s: %s\n", who == pid ? "parent" : "child", name_of_status(status));
			if (event)
				ptrace(PTRACE_GETEVENTMSG, who, 0, &message);
			if (event == PTRACE_EVENT_EXIT)
				printf("  with %#lx\n", message);
			if (event == PTRACE_EVENT_EXEC)
				printf("  by %d, rax %lld\n", message == (unsigned long)pid, registers_of(pid).rax);
			if (event && event <= PTRACE_EVENT_CLONE) {
				child = message;
				printf("  in call %lld, rax %lld\n", registers_of(pid).orig_rax, registers_of(pid).rax);
				/* Its first stop comes now or has come: one is waited for before the other goes on. */
				if (waitpid(child, &status, __WALL) == child)
					printf("  it begins: %s, rax %lld\n", name_of_status(status), registers_of(child).rax);
				ptrace(PTRACE_CONT, child, 0, 0);
				begun++;
			}
		}
		int signo = WIFSTOPPED(status) && !event ? WSTOPSIG(status) : 0;
		ptrace(PTRACE_CONT, who, 0, signo == SIGSTOP || signo == SIGTRAP ? 0 : signo);
	}
	printf("events of %d children, done %d; then %s\n", begun, done, strerrorname_np(errno));
}

static void *executes_in_thread(void *nothing)
{
	execl("/proc/self/exe", "tracer", "as", "another", (char *)0);
	return nothing;
}

static void has_thread(void)
{
	pthread_t thread;
	pthread_create(&thread, 0, executes_in_thread, 0);
	for (;;)
		pause();
}

/* An execve by a thread: the process goes on with the number of its first one. The tracer waits for the event at once, or does
 * something else meanwhile. */
static void thread_executes(int is_busy)
{
	pid_t pid = traced(has_thread, PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE | PTRACE_O_TRACEEXEC), who;
	unsigned long message = 0, thread = 0;
	int status, ends = 0, is_executed = 0, executes = 0;
	ptrace(PTRACE_SYSCALL, pid, 0, 0);
	while ((who = waitpid(-1, &status, __WALL)) > 0) {
		int event = status >> 16, is_call = WIFSTOPPED(status) && WSTOPSIG(status) == (SIGTRAP | 0x80);
		if (event == PTRACE_EVENT_CLONE)
			ptrace(PTRACE_GETEVENTMSG, who, 0, &thread);
		if (event == PTRACE_EVENT_EXEC) {
			is_executed = 1;
			ptrace(PTRACE_GETEVENTMSG, who, 0, &message);
			printf("execve: the first one's %d, by the thread %d\n", who == pid, message == thread);
		}
		if (is_call && is_executed && !ends++)
			printf("the end of the execve: %lld, call %lld\n", registers_of(who).rax, registers_of(who).orig_rax);
		if (WIFEXITED(status) && who == pid)
			printf("the process: %s\n", name_of_status(status));
		executes = is_call && !is_executed && registers_of(who).orig_rax == SYS_execve;
		ptrace(PTRACE_SYSCALL, who, 0, 0);
		if (executes && is_busy)
			poll(0, 0, 100);
	}
}

/* An execve of one that wants no events is a SIGTRAP. */
static void executes(void)
{
	execl("/proc/self/exe", "tracer", "as", "another", (char *)0);
}

static void traps_at_execve(void)
{
	siginfo_t info;
	pid_t pid = traced(executes, 0);
	ptrace(PTRACE_CONT, pid, 0, 0);
	expect("execve", pid);
	ptrace(PTRACE_GETSIGINFO, pid, 0, &info);
	printf("signal %d code %d from itself %d\n", info.si_signo, info.si_code, info.si_pid == pid);
	ptrace(PTRACE_CONT, pid, 0, 0);
	expect("executed", pid);
}

static void tells_and_waits(void)
{
	char byte = 0;
	for (int i = 0; i < 20; i++) {
		char *page = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		page[0] = i;
	}
	if (write(back[1], "r", 1) != 1 || read(ends[0], &byte, 1) != 1)
		_exit(98);
	handled = byte;
}

/* A tracer that reads from its tracee, and does not wait for it. */
static void is_not_needed(void)
{
	char byte;
	pid_t pid = traced(tells_and_waits, 0);
	ptrace(PTRACE_CONT, pid, 0, 0);
	if (read(back[0], &byte, 1) == 1 && write(ends[1], "\5", 1) == 1)
		expect("one that is not waited for", pid);
}

static void faults_for_ever(void)
{
	for (;;) {
		char *page = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		page[0] = 1;
		munmap(page, 4096);
	}
}

/* What a tracee does that its tracer does not see makes no wait of the tracer longer, and interrupts none. */
static void sleeps_undisturbed(void)
{
	struct timespec brief = {0, 20000000}, none = {0, 0};
	fd_set set;
	struct timeval time = {0, 20000};
	pid_t pid = traced(faults_for_ever, 0);
	ptrace(PTRACE_CONT, pid, 0, 0);
	printf("poll: %d\n", poll(0, 0, 20));
	printf("nanosleep: %d\n", nanosleep(&brief, 0));
	FD_ZERO(&set);
	FD_SET(back[0], &set);
	printf("select: %d\n", select(back[0] + 1, &set, 0, 0, &time));
	printf("clock_nanosleep: %d\n", clock_nanosleep(CLOCK_MONOTONIC, 0, &brief, &none));
	kill(pid, SIGKILL);
	expect("one that faults for ever", pid);
}

/* A tracer that is killed: its tracee goes on, or ends with it. */
static void tracer_dies(long options)
{
	char byte;
	pid_t *tracee = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	fflush(stdout);
	pid_t tracer = fork();
	if (!tracer) {
		*tracee = traced(tells_and_waits, options);
		ptrace(PTRACE_CONT, *tracee, 0, 0);
		if (read(back[0], &byte, 1) == 1)
			raise(SIGKILL);
		_exit(1);
	}
	expect("a tracer", tracer);
	if (options || write(ends[1], "\5", 1) == 1)
		expect("its tracee", *tracee);
	prctl(PR_SET_CHILD_SUBREAPER, 0);
}

/* A seized tracee takes part in a stop of its process. */
static void stops(void)
{
	static const int requests[] = {PTRACE_CONT, PTRACE_LISTEN, PTRACE_CONT, PTRACE_CONT};
	fflush(stdout);
	pid_t pid = fork();
	if (!pid)
		pauses();
	ptrace(PTRACE_SEIZE, pid, 0, PTRACE_O_EXITKILL);
	kill(pid, SIGSTOP);
	for (int i = 0; i < 4; i++) {
		int status = wait_for(pid), signo = WSTOPSIG(status) == SIGTRAP || status >> 16 ? 0 : WSTOPSIG(status);
		printf("a stop: %s\n", name_of_status(status));
		ptrace(requests[i], pid, 0, signo);
		if (i == 1)
			kill(pid, SIGCONT);
	}
	kill(pid, SIGTERM);
	expect("a stop", pid);
	ptrace(PTRACE_CONT, pid, 0, SIGTERM);
	expect("no stop", pid);
}

int main(int argc, char **argv)
{
	if (argc > 2)
		return 5;
	if (begin(argc, argv))
		return 1;
	attaches(1);
	attaches(0);
	events();
	traps_at_execve();
	thread_executes(0);
	for (int i = 0; i < 4; i++)
		thread_executes(1);
	is_not_needed();
	sleeps_undisturbed();
	tracer_dies(PTRACE_O_EXITKILL);
	tracer_dies(0);
	stops();
	return 0;
}
