/* Pages that kerneld has given in advance, with their frames: at the first write to one the stub maps it, and kerneld learns of
 * it later, before it does anything else. Only the one thread of a process takes pages. See docs/abi.md, "Advances". */
#include "../native.h"

#define NR_ADVANCES 8
#define IS_COPY 8	/* in rights: the page has to become a copy of what is mapped there */
#define COPY_START 0x6a7800000000UL	/* where a frame is while the copy is made */
#define MAP_SHARED_FIXED_POPULATE 0x8011
#define PF_PRESENT 1
#define PF_WRITE 2
#define PF_USER 4

struct advance { u64 start, pages, rights, is_recalled, taken, is_busy, unused[2]; };
struct advances { struct advance of[NR_ADVANCES]; u64 count, unused[447]; u64 offsets[NR_ADVANCES][64]; };

/* Fill a frame. (A write to the file would meet the program's RLIMIT_FSIZE.) */
static int put_copy(const char *copy, u64 offset)
{
	if (sys6(NR_mmap, COPY_START, PAGE_BYTES, 3, MAP_SHARED_FIXED_POPULATE, process.ram_fd, offset) != COPY_START)
		return 0;
	memcpy((char *)COPY_START, copy, PAGE_BYTES);
	sys2(NR_munmap, COPY_START, PAGE_BYTES);
	return 1;
}

/* Say that a page of an advance is taken. It is the program's then, even if it is not mapped yet. kerneld may recall the advance
 * at any time: it looks at is_busy, then at `taken`, after it has said so. 0: it has. */
static int say_taken(struct advances *all, struct advance *advance, u64 bit, const char *copy, u64 offset)
{
	int is_ours = 0;
	__atomic_store_n(&advance->is_busy, 1, __ATOMIC_SEQ_CST);
	if (!__atomic_load_n(&advance->is_recalled, __ATOMIC_SEQ_CST) &&
	    (!copy || put_copy(copy, offset))) {
		__atomic_store_n(&advance->taken, advance->taken | bit, __ATOMIC_SEQ_CST);
		__atomic_store_n(&all->count, all->count + 1, __ATOMIC_SEQ_CST);
		is_ours = !__atomic_load_n(&advance->is_recalled, __ATOMIC_SEQ_CST);
	}
	__atomic_store_n(&advance->is_busy, 0, __ATOMIC_SEQ_CST);
	return is_ours;
}

static int take(struct thread *t, struct advances *all, int which, u64 page, u64 number)
{
	char copy[PAGE_BYTES];
	struct advance *advance = &all->of[which];
	u64 offset = all->offsets[which][number], rights = advance->rights;
	int is_copy = rights & IS_COPY ? 1 : 0;
	if (is_copy && user_copy(copy, (void *)page, PAGE_BYTES))
		return 0;
	if (!tlb_begin(t))
		return 1;
	u64 generation = __atomic_load_n(&process.generation, __ATOMIC_SEQ_CST);
	int is_taken = say_taken(all, advance, 1UL << number, is_copy ? copy : 0, offset);
	if (is_taken)
		tlb_put_taken(t, generation, page, rights & ~(u64)IS_COPY, offset);
	tlb_end(t);
	return is_taken;
}

/* A fault of the program: 1 if its page was given in advance. */
int take_advance(struct thread *t, u64 address, u64 err)
{
	struct advances *all = t->advances;
	if (!all || (err & ~(u64)PF_PRESENT) != (PF_WRITE | PF_USER) || process.dump)
		return 0;
	for (int i = 0; i < NR_ADVANCES; i++) {
		struct advance *advance = &all->of[i];
		u64 number = (address - advance->start) / PAGE_BYTES;
		if (!advance->start || address < advance->start || number >= 64 || !(advance->pages & ~advance->taken & 1UL << number))
			continue;
		if (!(advance->rights & IS_COPY) != !(err & PF_PRESENT))
			return 0;
		return take(t, all, i, address & -PAGE_BYTES, number);
	}
	return 0;
}
