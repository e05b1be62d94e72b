/* Pages that kerneld has given in advance, with their frames: at the first write to one the stub maps it, and kerneld learns of
 * it later, before it does anything else. Only the one thread of a process takes pages. See docs/abi.md, "Advances". */
#include "../native.h"

#define NR_ADVANCES 8
#define NR_ROWS 16
#define ROW_PAGES 512
#define WINDOW_PAGES 16
#define IS_COPY 8	/* in rights: the page has to become a copy of what is mapped there */
#define IS_FROM 256	/* the page has to become a copy of another frame */
#define COPY_START 0x6a7800000000UL	/* where a frame is while the copy is made */
#define SOURCE_START (COPY_START + PAGE_BYTES)
#define MAP_SHARED_FIXED_POPULATE 0x8011
#define PF_PRESENT 1
#define PF_WRITE 2
#define PF_USER 4
#define PF_INSTR 16
#define PROT_EXEC 4
#define PAUSES 10000	/* some 150 to 500 microseconds */
#define PAUSES_OF_A_TURN 500

struct advance { u64 start, pages, rights, is_recalled, taken, is_busy, unused[2]; };
struct advances {
	struct advance of[NR_ADVANCES], rows[NR_ROWS];
	u64 count, is_coming, unused[318];
	u64 offsets[NR_ADVANCES][64], row_offsets[NR_ROWS][ROW_PAGES], sources[NR_ADVANCES][64];
};

/* Fill a frame. (A write to the file would meet the program's RLIMIT_FSIZE.) */
static int put_copy(const char *copy, u64 offset)
{
	if (sys6(NR_mmap, COPY_START, PAGE_BYTES, 3, MAP_SHARED_FIXED_POPULATE, process.ram_fd, offset) != COPY_START)
		return 0;
	memcpy((char *)COPY_START, copy, PAGE_BYTES);
	sys2(NR_munmap, COPY_START, PAGE_BYTES);
	return 1;
}

/* Map a frame that is to be copied; 0: the host refuses. */
static const char *map_source(u64 offset)
{
	long at = sys6(NR_mmap, SOURCE_START, PAGE_BYTES, 1, MAP_SHARED_FIXED_POPULATE, process.ram_fd, offset);
	return at == (long)SOURCE_START ? (const char *)SOURCE_START : 0;
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
		if (advance < all->rows)
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
	const char *copied = rights & IS_COPY ? copy : 0;
	if (copied && user_copy(copy, (void *)page, PAGE_BYTES))
		return 0;
	if (rights & IS_FROM && !(copied = map_source(all->sources[which][number])))
		return 0;
	if (!tlb_begin(t))
		return 1;
	u64 generation = __atomic_load_n(&process.generation, __ATOMIC_SEQ_CST);
	int is_taken = say_taken(all, advance, 1UL << number, copied, offset);
	if (is_taken)
		tlb_put_taken(t, generation, page, PAGE_BYTES, rights & ~(u64)(IS_COPY | IS_FROM), offset);
	tlb_end(t);
	if (rights & IS_FROM)
		sys2(NR_munmap, SOURCE_START, PAGE_BYTES);
	return is_taken;
}

/* After an answer kerneld may still write advances: 1 when it has, 0 if it takes too long. */
static int all_are_there(struct advances *all)
{
	for (int i = 0; __atomic_load_n(&all->is_coming, __ATOMIC_ACQUIRE); i++) {
		if (i == PAUSES)
			return 0;
		if (i % PAUSES_OF_A_TURN == PAUSES_OF_A_TURN - 1)
			sys0(NR_sched_yield);	/* kerneld may want this processor */
		__builtin_ia32_pause();
	}
	return 1;
}

static int take_page(struct thread *t, struct advances *all, u64 address, u64 err)
{
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

static int is_mapped_by_window(u64 offset)
{
	return !(offset & (PAGE_BYTES - 1));
}

/* Map the pages of a window, in runs of frames that follow each other. */
static void put_window(struct thread *t, u64 generation, u64 start, const u64 *offsets, u64 rights)
{
	for (u64 i = 0, count; i < WINDOW_PAGES; i += count) {
		count = 1;
		if (!is_mapped_by_window(offsets[i]))
			continue;
		while (i + count < WINDOW_PAGES && offsets[i + count] == offsets[i] + count * PAGE_BYTES)
			count++;
		tlb_put_taken(t, generation, start + i * PAGE_BYTES, count * PAGE_BYTES, rights, offsets[i]);
	}
}

/* A read of a file's page: the pages around it come with it, as by a fault. */
static int take_window(struct thread *t, struct advances *all, u64 address, u64 err)
{
	for (int i = 0; i < NR_ROWS; i++) {
		struct advance *row = &all->rows[i];
		u64 page = (address - row->start) / PAGE_BYTES, number = page / WINDOW_PAGES;
		if (!row->start || address < row->start || page >= ROW_PAGES || !(row->pages & ~row->taken & 1UL << number) ||
		    !is_mapped_by_window(all->row_offsets[i][page]))
			continue;
		if (err & PF_INSTR && !(row->rights & PROT_EXEC))
			return 0;
		if (!tlb_begin(t))
			return 1;
		u64 generation = __atomic_load_n(&process.generation, __ATOMIC_SEQ_CST);
		int is_taken = say_taken(all, row, 1UL << number, 0, 0);
		if (is_taken)
			put_window(t, generation, row->start + number * WINDOW_PAGES * PAGE_BYTES,
				   &all->row_offsets[i][number * WINDOW_PAGES], row->rights);
		tlb_end(t);
		return is_taken;
	}
	return 0;
}

/* A fault of the program: 1 if its page was given in advance. */
int take_advance(struct thread *t, u64 address, u64 err)
{
	struct advances *all = t->advances;
	if (!all || process.dump || !all_are_there(all))
		return 0;
	if ((err & ~(u64)PF_PRESENT) == (PF_WRITE | PF_USER))
		return take_page(t, all, address, err);
	return (err & ~(u64)PF_INSTR) == PF_USER && take_window(t, all, address, err);
}
