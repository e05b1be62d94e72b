/* A thread ends: what the host's kernel would do with words in the program's memory. It would find no page where kerneld has
 * taken that away, and say nothing. */
#include "../native.h"

#define FUTEX_WAKE 1
#define FUTEX_WAITERS 0x80000000U
#define FUTEX_OWNER_DIED 0x40000000U
#define FUTEX_TID_MASK 0x3fffffffU
#define ROBUST_LIST_LIMIT 2048
#define HEAD_BYTES 24

static void wake(u64 address, int count)
{
	while (sys3(NR_futex, address, FUTEX_WAKE, count) == -EFAULT && !touch(address, 4, 0))
		;
}

/* Source: Linux v6.8 kernel/futex/core.c:handle_futex_death(). */
static void futex_died(struct thread *t, u64 address)
{
	u32 word;
	if (address % 4 || touch(address, 4, 1) || user_copy(&word, (void *)address, 4) || (word & FUTEX_TID_MASK) != (u32)t->tid)
		return;
	u32 dead = (word & FUTEX_WAITERS) | FUTEX_OWNER_DIED;
	if (!user_copy((void *)address, &dead, 4) && word & FUTEX_WAITERS)
		wake(address, 1);
}

/* Source: Linux v6.8 kernel/futex/core.c:exit_robust_list(). Priority inheritance, the lowest bit of a pointer, is the host's. */
static void leave_robust_list(struct thread *t)
{
	u64 head[3], entry, next;
	if (!t->robust || user_copy(head, (void *)t->robust, sizeof head))
		return;
	entry = head[0] & ~1UL;
	for (int count = 0; entry != t->robust && count < ROBUST_LIST_LIMIT; count++) {
		int is_last = user_copy(&next, (void *)entry, 8);
		if (entry != head[2])
			futex_died(t, entry + head[1]);
		if (is_last)
			return;
		entry = next & ~1UL;
	}
	if (head[2])
		futex_died(t, (head[2] & ~1UL) + head[1]);
}

void leave_futexes(struct thread *t, int others_live)
{
	static const u32 zero;
	leave_robust_list(t);
	sys2(NR_set_robust_list, 0, HEAD_BYTES);
	if (!t->clear_tid || !others_live)
		return;
	sys1(NR_set_tid_address, 0);
	if (!user_copy((void *)t->clear_tid, &zero, sizeof zero))
		wake(t->clear_tid, 1);
}
