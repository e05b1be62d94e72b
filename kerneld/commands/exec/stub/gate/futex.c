/* Futexes. The words that such a call is about are not copied: they must be in the TLB while the host looks at them. Of a
 * shared futex the frame is the key. If it changes while a thread waits, the thread is kicked, and waits again on the new
 * one. */
#include "gate.h"

#define FUTEX_WAIT 0
#define FUTEX_LOCK_PI 6
#define FUTEX_WAIT_BITSET 9
#define FUTEX_WAIT_REQUEUE_PI 11
#define FUTEX_LOCK_PI2 13
#define FUTEX_PRIVATE_FLAG 128
#define FUTEX_COMMAND(op) ((op) & 0x7f)
#define FUTEX_WAITV_MAX 128
#define TIMEOUT 3	/* which argument it is, of both calls that wait */

struct user_waitv { u64 value, address; u32 flags, reserved; };

static int is_futex_wait(const u64 *args)
{
	static const u32 waits = 1 << FUTEX_WAIT | 1 << FUTEX_LOCK_PI | 1 << FUTEX_WAIT_BITSET | 1 << FUTEX_WAIT_REQUEUE_PI |
				 1 << FUTEX_LOCK_PI2;
	return waits >> (FUTEX_COMMAND(args[1]) & 31) & 1;
}

#define COMMANDS(...) commands((const char[]){__VA_ARGS__, -1})
static inline u32 commands(const char *list)
{
	u32 bits = 0;
	while (*list >= 0)
		bits |= 1U << *list++;
	return bits;
}

/* Have a word in the TLB as the host needs it; not 0 where that cannot be. Memory that can be read only has a key if it is a
 * file's. Source: Linux v6.8 kernel/futex/core.c:get_futex_key(). */
static long touch_word(struct thread *t, u64 at, int is_shared, int reads, int writes)
{
	u64 args[6] = {at, 0, FAULT_FOR_KERNEL | FAULT_FUTEX, t->pkru};
	if (at % 4)
		return 0;	/* what is wrong with it the host says */
	if (at > USER_END)
		return -EFAULT;
	if (writes)
		return touch(at, 4, 1);
	if (!is_shared)
		return reads ? touch(at, 4, 0) : 0;
	if (!touch(at, 4, 1))
		return 0;
	t->told_pkru = t->pkru;
	return page_fault(t, args).ret;
}

/* Have the words of a futex call in the TLB; not 0 where that cannot be. */
static long touch_futex(struct thread *t, const u64 *args)
{
	u32 reads = COMMANDS(FUTEX_WAIT, 4, FUTEX_WAIT_BITSET, FUTEX_WAIT_REQUEUE_PI, 12);
	u32 writes = COMMANDS(FUTEX_LOCK_PI, 7, 8, FUTEX_LOCK_PI2);
	u32 with_second = COMMANDS(3, 4, 5, FUTEX_WAIT_REQUEUE_PI, 12), writes_second = COMMANDS(5, FUTEX_WAIT_REQUEUE_PI, 12);
	u32 command = 1U << (FUTEX_COMMAND(args[1]) & 31);
	int is_shared = !(args[1] & FUTEX_PRIVATE_FLAG);
	if (FUTEX_COMMAND(args[1]) > FUTEX_LOCK_PI2)
		return 0;
	long ret = touch_word(t, args[0], is_shared, command & reads ? 1 : 0, command & writes ? 1 : 0);
	if (ret || !(command & with_second))
		return ret;
	return touch_word(t, args[4], is_shared, 0, command & writes_second ? 1 : 0);
}

/* The same for those of futex_waitv(). They become shared futexes of the thread, if it waits for any that is shared. */
static long touch_many(struct thread *t, const struct user_waitv *waiters, u64 count)
{
	u64 low = ~0UL, high = 0;
	for (u64 i = 0; i < count; i++) {
		int is_shared = !(waiters[i].flags & FUTEX_PRIVATE_FLAG);
		if (touch_word(t, waiters[i].address, is_shared, 1, 0))
			return -EFAULT;
		if (is_shared && waiters[i].address < low)
			low = waiters[i].address;
		if (is_shared && waiters[i].address > high)
			high = waiters[i].address;
	}
	if (low <= high)
		set_shared_futex(t, low, high - low + 4);
	return 0;
}

/* What the thread waits for, until the agent kicks it; no address: nothing any more. */
void set_shared_futex(struct thread *t, u64 address, u64 length)
{
	if (!!address != !!t->shared_futex)
		__atomic_fetch_add(&process.shared_waits, address ? 1 : -1, __ATOMIC_SEQ_CST);
	t->shared_futex_bytes = length;
	__atomic_store_n(&t->shared_futex, address, __ATOMIC_SEQ_CST);
}

static void waitv_call(struct thread *t, struct ucontext *uc, const u64 *args)
{
	static const struct row pointers = {NR_futex_waitv, 1, {{BY, 0, 1, 0, sizeof(struct user_waitv)}, {BYTES, TIMEOUT, 0, 0, 16}}};
	u64 copies[6];
	memcpy(copies, args, sizeof copies);
	copies[1] = (u32)args[1];
	bounce_in(t, &pointers, copies);
	/* What cannot be touched is not there for the host either. */
	if (copies[0] != args[0] && copies[1] <= FUTEX_WAITV_MAX)
		touch_many(t, (const struct user_waitv *)copies[0], copies[1]);
	pass_copied(t, uc, NR_futex_waitv, args, copies, 1);
}

void futex_call(struct thread *t, struct ucontext *uc, long nr, const u64 *args)
{
	static const struct row timeout = {NR_futex, 1, {{BYTES, TIMEOUT, 0, 0, 16}}};
	u64 copies[6];
	long ret;
	if (nr == NR_futex_waitv) {
		waitv_call(t, uc, args);
		return;
	}
	memcpy(copies, args, sizeof copies);
	if (is_futex_wait(args) && !touch_futex(t, args)) {
		if (!(args[1] & FUTEX_PRIVATE_FLAG))
			set_shared_futex(t, args[0], 4);
		bounce_in(t, args[TIMEOUT] ? &timeout : &no_pointers, copies);
		pass_copied(t, uc, NR_futex, args, copies, 1);
		return;
	}
	do
		ret = touch_futex(t, args) ? -EFAULT : user_call(t, NR_futex, args);
	while (ret == -EFAULT && !touch_futex(t, args));
	uc->mc.rax = ret;
}

/* The call in the gate has ended with EFAULT: whether only a page of a futex had gone in between. What could not be copied
 * the program has named wrongly. */
int has_lost_futex(struct thread *t, const struct ucontext *uc)
{
	const u64 *args = t->bounce.args;
	if (args[TIMEOUT] && uc->mc.r10 == args[TIMEOUT])
		return 0;
	if (t->bounce.nr == NR_futex)
		return !touch_futex(t, args);
	return t->bounce.nr == NR_futex_waitv && uc->mc.rdi != args[0] && uc->mc.rsi <= FUTEX_WAITV_MAX &&
	       !touch_many(t, (const struct user_waitv *)uc->mc.rdi, uc->mc.rsi);
}

/* The agent has dropped pages: who waits there for a futex of which the frame was the key looks again. */
void kick_waiters(u64 start, u64 length)
{
	if (!__atomic_load_n(&process.shared_waits, __ATOMIC_SEQ_CST))
		return;
	for (int i = 0; i < MAX_AREAS; i++) {
		struct thread *t = area_at(i);
		u64 at = t ? __atomic_load_n(&t->shared_futex, __ATOMIC_SEQ_CST) : 0;
		if (at && at < start + length && start < at + t->shared_futex_bytes) {
			__atomic_store_n(&t->is_kicked, 1, __ATOMIC_SEQ_CST);
			sys2(NR_tkill, t->tid, SIGSYS);
		}
	}
}
