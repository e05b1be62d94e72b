/* The TLB: the host's mappings of the machine's RAM. An answer names what is to be dropped and what may be put in.
 *
 * What kerneld takes away on behalf of others comes to the agent at the same time, on another connection. So an answer
 * may be old when it is read: it carries the number of the orders that kerneld had given by then. The agent notes the
 * number of its order first, then waits for threads that are between looking at it and having mapped, then drops.
 */
#include "native.h"

#define PROT_BITS 7
#define KEY_OF(word) ((word) >> 4 & 15)
#define PROT_NONE 0
#define MAP_SHARED 1
#define MAP_FIXED 0x10
#define FUTEX_WAKE_PRIVATE 129

/* Drop a range, which may be wider than what was ever there, but never the stub. */
long tlb_drop(u64 start, u64 length)
{
	u64 end = start + length;
	long ret = 0;
	if (start < STUB_START)
		ret = sys2(NR_munmap, start, (end < STUB_START ? end : STUB_START) - start);
	if (end > STUB_END) {
		u64 low = start > STUB_END ? start : STUB_END;
		ret = ret ? ret : sys2(NR_munmap, low, end - low);
	}
	table_dropped(start, length);
	kick_waiters(start, length);
	return ret;
}

/* A page with a key is not there before it has its key. */
static long tlb_put(u64 start, u64 length, long prot, long key, u64 offset)
{
	long ret = sys6(NR_mmap, start, length, key ? PROT_NONE : prot, MAP_SHARED | MAP_FIXED, process.ram_fd, offset);
	return ret < 0 && ret > -4096 ? ret : key ? sys4(NR_pkey_mprotect, start, length, prot, key) : 0;
}

void tlb_apply(struct thread *t, const struct tlb_record *record)
{
	const struct tlb_op *op = (const struct tlb_op *)(record + 1);
	__atomic_store_n(&t->mapping, 1, __ATOMIC_SEQ_CST);
	int stale = __atomic_load_n(&process.generation, __ATOMIC_SEQ_CST) > record->generation;
	for (u32 i = 0; i < record->count; i++, op++) {
		u64 length = op->length_prot & -PAGE_BYTES;
		long prot = op->length_prot & PROT_BITS;
		long ret;
		if (!prot)
			ret = tlb_drop(op->start, length);
		else if (stale)
			continue;	/* the access comes again, and is told anew */
		else
			ret = tlb_put(op->start, length, prot, KEY_OF(op->length_prot), op->offset);
		if (ret == -ENOMEM) {
			/* More mappings than the host gives a process: as a TLB that is full, it forgets. */
			tlb_drop_all();
			continue;
		}
		if (ret < 0)
			die("the host refuses a mapping of RAM");
	}
	if (__atomic_exchange_n(&t->mapping, 0, __ATOMIC_SEQ_CST) == 2)
		sys3(NR_futex, &t->mapping, FUTEX_WAKE_PRIVATE, 1);
}

/* Dropping too much is always right: it comes again when it is needed. */
void tlb_drop_all(void)
{
	tlb_drop(0, USER_END);
}
