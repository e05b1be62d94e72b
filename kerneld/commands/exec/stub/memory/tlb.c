/* The TLB: the host's mappings of the machine's RAM. An answer names what is to be dropped and what may be put in.
 *
 * What kerneld takes away on behalf of others comes to the agent at the same time, on another connection. So an answer
 * may be old when it is read: it carries the number of the orders that kerneld had given by then. The agent notes the
 * number of its order first, then waits for threads that are between looking at it and having mapped, then drops.
 *
 * It does not wait for a thread that is stopped (SIGSTOP): the look at the number and the call that maps are one
 * restartable sequence. If the host takes the processor away between the two, the thread looks again before it maps.
 * Source: rseq(2), Linux v6.8 kernel/rseq.c: rseq_ip_fixup().
 */
#include "../native.h"

#define PROT_BITS 7
#define KEY_OF(word) ((word) >> 4 & 15)
#define PROT_NONE 0
#define MAP_SHARED 1
#define MAP_FIXED 0x10
#define FUTEX_WAKE_PRIVATE 129
#define RSEQ_SIGNATURE 0x53053053
#define LATE 1		/* no call here returns it */

/* Unmap a range, which may be wider than what was ever there, but never the stub. */
long tlb_unmap(u64 start, u64 length)
{
	u64 end = start + length;
	long ret = 0;
	if (start < STUB_START)
		ret = sys2(NR_munmap, start, (end < STUB_START ? end : STUB_START) - start);
	if (end > STUB_END) {
		u64 low = start > STUB_END ? start : STUB_END;
		ret = ret ? ret : sys2(NR_munmap, low, end - low);
	}
	return ret;
}

long tlb_drop(u64 start, u64 length)
{
	long ret = tlb_unmap(start, length);
	table_dropped(start, length);
	kick_waiters(start, length);
	return ret;
}

void tlb_start(struct thread *t)
{
	long ret = sys4(NR_rseq, &t->rseq, sizeof t->rseq, 0, RSEQ_SIGNATURE);
	/* After a fork it is registered already. */
	t->has_rseq = !ret || ret == -EBUSY;
}

/* Make a call that maps, unless the agent has had an order later than `generation`: LATE then. The sequence ends behind
 * the syscall instruction: a thread that is about to execute it looks again too. There is one copy of it, for its symbol. */
#ifdef __clang__
__attribute__((noinline, optnone))
#else
__attribute__((noipa))
#endif
static long call_in_time(struct thread *t, u64 generation, long nr, long a, long b, long c, long d, long e, long f)
{
	long ret;
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	__asm__ volatile("	.pushsection .data.rseq, \"aw\"\n"
			 "	.balign 32\n"
			 "0:	.quad 0, 1f, 2f - 1f, 3f\n"
			 "	.popsection\n"
			 "	jmp 3f\n"
			 "	.long %c[signature]\n"
			 "3:	lea 0b(%%rip), %%rax\n"
			 "	mov %%rax, %[section]\n"
			 "1:	mov %[late], %%eax\n"
			 "	cmp %[generation], %[latest]\n"
			 "	ja 2f\n"
			 "	mov %[nr], %%rax\n"
			 ".globl tlb_syscall\n"
			 "tlb_syscall:\n"
			 "	syscall\n"
			 "2:\n"
			 : "=&a"(ret), [section] "=m"(t->rseq.section)
			 : [nr] "r"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9), [generation] "r"(generation),
			   [latest] "m"(process.generation), [signature] "i"(RSEQ_SIGNATURE), [late] "i"(LATE)
			 : "rcx", "r11", "memory", "cc");
	return ret;
}

/* A page with a key is not there before it has its key. */
static long tlb_put(struct thread *t, u64 generation, u64 start, u64 length, long prot, long key, u64 offset)
{
	long first = key ? PROT_NONE : prot;
	long ret = call_in_time(t, generation, NR_mmap, start, length, first, MAP_SHARED | MAP_FIXED, process.ram_fd, offset);
	if (ret < 0 || !key)
		return ret;
	return call_in_time(t, generation, NR_pkey_mprotect, start, length, prot, key, 0, 0);
}

void tlb_end(struct thread *t)
{
	if (__atomic_exchange_n(&t->mapping, 0, __ATOMIC_SEQ_CST) == 2)
		sys3(NR_futex, &t->mapping, FUTEX_WAKE_PRIVATE, 1);
}

/* 1 if it may map now; 0 for the thread that dumps core: it has no TLB any more. The others wait then. */
int tlb_begin(struct thread *t)
{
	for (;;) {
		__atomic_store_n(&t->mapping, 1, __ATOMIC_SEQ_CST);
		if (!__atomic_load_n(&process.dump, __ATOMIC_SEQ_CST))
			return 1;
		tlb_end(t);
		if (!dump_wait(t))
			return 0;
	}
}

/* What the host has said to a mapping. */
static void tlb_settle(long ret, u64 start, u64 length)
{
	if (ret == LATE)
		/* The access comes again, and is told anew. What the new mapping was to take the place of goes now. */
		ret = tlb_drop(start, length);
	if (ret == -ENOMEM)
		/* More mappings than the host gives a process: as a TLB that is full, it forgets. */
		tlb_drop_all();
	else if (ret < 0)
		die("the host refuses a mapping of RAM");
}

/* Map pages that the program has taken, between tlb_begin() and tlb_end(). `generation` was read before that. */
void tlb_put_taken(struct thread *t, u64 generation, u64 start, u64 length, long prot, u64 offset)
{
	tlb_settle(tlb_put(t, generation, start, length, prot, 0, offset), start, length);
}

void tlb_apply(struct thread *t, const struct tlb_record *record)
{
	const struct tlb_op *op = (const struct tlb_op *)(record + 1);
	if (!tlb_begin(t))
		return;
	for (u32 i = 0; i < record->count; i++, op++) {
		u64 length = op->length_prot & -PAGE_BYTES;
		long prot = op->length_prot & PROT_BITS;
		long ret;
		if (!prot)
			ret = tlb_drop(op->start, length);
		else
			ret = tlb_put(t, record->generation, op->start, length, prot, KEY_OF(op->length_prot), op->offset);
		tlb_settle(ret, op->start, length);
	}
	tlb_end(t);
}

/* Dropping too much is always right: it comes again when it is needed. */
void tlb_drop_all(void)
{
	tlb_drop(0, USER_END);
}
