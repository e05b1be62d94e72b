/* The agent: one more task in the program's address space that drops from the TLB what kerneld takes away on behalf of
 * others, and acknowledges it. It shares nothing but the memory with the program: no descriptors, no handlers, no
 * session. It takes no lock, and waits for no thread but for the few instructions in which one maps. */
#include "../native.h"

#define CLONE_VM 0x100
#define CLONE_UNTRACED 0x800000
#define AGENT_STACK 0x6a7000000000UL
#define AGENT_STACK_BYTES 0x10000UL
#define DISMISSED 0xffffffffU
#define FUTEX_WAIT_PRIVATE 128
#define NR_setsid 112
#define NR_pidfd_open 434
#define NR_pidfd_send_signal 424
#define NR_recvfrom 45
#define PR_SET_NAME 15
#define NR_getpriority 140
#define NR_sched_setattr 314
#define SLICE_NS 100000

extern long clone_on(u64 flags, u64 stack, u64 ptid, u64 ctid, u64 tls, void (*function)(u64));

/* Tell whether the program has ended: it may have been killed while one of its threads was mapping. */
static int has_ended(long program)
{
	struct { int fd; short events, revents; } poll = {program, 1, 0};
	return program >= 0 && sys3(NR_poll, &poll, 1, 0) > 0;
}

/* Tell whether a thread is stopped, and so will look at the number of the order again before it maps: tlb.c. One that a
 * debugger outside has stopped may be in the call already; one inside stops no call of the stub. */
static int is_stopped(const struct thread *t)
{
	char text[64] = "/proc/";
	memcpy(put_number(text + 6, t->tid) - 1, "/stat", 6);
	long fd = t->has_rseq ? sys2(NR_open, text, 0) : -1;
	if (fd < 0)
		return 0;
	long length = sys3(NR_read, fd, text, sizeof text);
	sys1(NR_close, fd);
	/* pid (name) state: a name may have brackets. Source: proc(5). */
	while (length > 2 && text[length - 3] != ')')
		length--;
	return length > 2 && (text[length - 1] == 'T' || (text[length - 1] == 't' && process.traced));
}

static void wait_for_mappers(long program)
{
	static const u64 a_millisecond[2] = {0, 1000000};
	for (int i = 0; i < MAX_AREAS; i++) {
		struct thread *t = area_at(i);
		while (t && __atomic_load_n(&t->mapping, __ATOMIC_SEQ_CST)) {
			u64 one = 1;
			if (has_ended(program))
				sys1(NR_exit_group, 0);
			__atomic_compare_exchange_n(&t->mapping, &one, 2, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
			if (sys4(NR_futex, &t->mapping, FUTEX_WAIT_PRIVATE, 2, a_millisecond) == -ETIMEDOUT && is_stopped(t))
				break;
		}
	}
}

/* While a thread dumps core there is no TLB: what is mapped is the dump's. */
static void carry_out(const struct tlb_record *record, long program)
{
	const struct tlb_op *op = (const struct tlb_op *)(record + 1);
	__atomic_store_n(&process.agent_drops, 1, __ATOMIC_SEQ_CST);
	if (__atomic_load_n(&process.dump, __ATOMIC_SEQ_CST) < DUMP_OWNS_MEMORY) {
		__atomic_store_n(&process.generation, record->generation, __ATOMIC_SEQ_CST);
		wait_for_mappers(program);
		for (u32 i = 0; i < record->count; i++, op++)
			if (tlb_drop(op->start, op->length_prot & -PAGE_BYTES) < 0)
				tlb_drop_all();
	}
	__atomic_store_n(&process.agent_drops, 0, __ATOMIC_SEQ_CST);
}

/* Its turns are short, and others wait for them: they come soon if its slice is short (Linux v6.12 kernel/sched/fair.c:
 * update_deadline()), and if a program that gives way to all others has an agent that does not. Before Linux 6.12 a host
 * ignores the slice. Who may not have better turns than its program, has the same. */
static void hurry(void)
{
	struct { u32 size, policy; u64 flags; int nice; u32 priority; u64 runtime, deadline, period; } attributes = {
		sizeof attributes, 0, 0, 0, 0, SLICE_NS, 0, 0};
	int nice = 20 - (int)sys2(NR_getpriority, 0, 0);
	if (nice < 0)
		attributes.nice = nice;
	if (sys3(NR_sched_setattr, 0, &attributes, 0) < 0) {
		attributes.nice = nice;
		sys3(NR_sched_setattr, 0, &attributes, 0);
	}
}

static void agent_main(u64 conn)
{
	char buffer[4096];
	const struct tlb_record *record = (const struct tlb_record *)buffer;
	long program = sys2(NR_pidfd_open, process.agent_pid, 0);
	sys0(NR_setsid);
	hurry();
	sys2(NR_prctl, PR_SET_NAME, AGENT_NAME);
	for (;;) {
		long got = sys6(NR_recvfrom, conn, (long)buffer, sizeof buffer, 0, 0, 0);
		if (got == -EINTR)
			continue;
		if (got < (long)sizeof *record) {
			/* kerneld has gone, and the program's memory with it. */
			sys4(NR_pidfd_send_signal, program, SIGKILL, 0, 0);
			sys1(NR_exit_group, 0);
		}
		if (record->count == DISMISSED)
			sys1(NR_exit_group, 0);
		carry_out(record, program);
		sys6(NR_sendto, conn, (long)&record->generation, 8, 0x4000, 0, 0);
	}
}

static void agent_begin(u64 conn)
{
	/* Its table of descriptors is a copy of the program's: an end of a pipe in it would keep that open. */
	sys3(NR_close_range, 0, conn - 1, 0);
	sys3(NR_close_range, conn + 1, ~0U, 0);
	agent_main(conn);
}

void agent_start(void)
{
	u64 all = ~0UL, mask;
	if (sys6(NR_mmap, AGENT_STACK, AGENT_STACK_BYTES, 3, 0x32, -1, 0) < 0)
		die("no memory for the agent");
	process.agent_pid = sys0(NR_getpid);
	u64 *top = (u64 *)(AGENT_STACK + AGENT_STACK_BYTES - 16);
	*top = process.agent_conn;
	sys4(NR_rt_sigprocmask, 2, &all, &mask, 8);
	if (clone_on(CLONE_VM | CLONE_UNTRACED, (u64)top, 0, 0, 0, agent_begin) < 0)
		die("no process for the agent");
	sys4(NR_rt_sigprocmask, 2, &mask, 0, 8);
	sys1(NR_close, process.agent_conn);
}
