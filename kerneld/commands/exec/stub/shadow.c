/* The calls of the shadow page table, made by a program inside: kerneld's. The table lies over the program's own memory:
 * a mapping of the host's that is no page of the RAM, and so none of the TLB. It is mapped again after a drop. */
#include "native.h"

#define PAGE_SHIFT 12
#define ENTRY_BYTES 24
#define LAYOUT_F24 0
#define OPEN_HOST 1
#define MAP_SHARED_FIXED 0x11
#define SEGV_ACCERR 2
#define MAX_SPT_RANGE 0x800000UL

static struct { u64 start, length; int fd; } table;

static int meets_table(u64 start, u64 length)
{
	return table.length && start < table.start + table.length && start + length > table.start;
}

static void map_table(void)
{
	sys6(NR_mmap, table.start, table.length, 1, MAP_SHARED_FIXED, table.fd, 0);
}

/* A range has been dropped from the TLB. */
void table_dropped(u64 start, u64 length)
{
	if (meets_table(start, length))
		map_table();
}

static void forget_table(void)
{
	u64 start = table.start, length = table.length;
	table.length = 0;
	sys2(NR_munmap, start, length);
	sys1(NR_close, table.fd);
}

/* The program unmaps or replaces a range: what lay over it goes too. */
void table_replaced(u64 start, u64 length)
{
	if (meets_table(start, length))
		forget_table();
}

/* A fault of the program: 1 where it is the table's, which can be read and not written. */
int table_fault(u64 address, int write, struct siginfo *info)
{
	if (!meets_table(address, 1))
		return 0;
	if (!write) {
		map_table();
		info->signo = 0;
	} else {
		info->signo = SIGSEGV;
		info->code = SEGV_ACCERR;
		si_addr_of(info) = address;
	}
	return 1;
}

static long open_table(struct thread *t, const u64 *given)
{
	u64 args[6] = {given[0], given[1], LAYOUT_F24, OPEN_HOST}, bounds[3];
	if (user_copy(bounds, (void *)given[1], sizeof bounds))
		return -EFAULT;
	struct answer answer = ask(t, NR_shadowpt_open, args, bounds, sizeof bounds, -1);
	if (answer.ret < 0)
		return answer.ret;
	memcpy(bounds, answer.data, sizeof bounds);
	sys1(NR_close, answer.fd[1]);
	table.fd = hide_fd(answer.fd[0]);
	table.start = bounds[2];
	table.length = (((bounds[1] - bounds[0]) >> PAGE_SHIFT) * ENTRY_BYTES + PAGE_BYTES - 1) & -PAGE_BYTES;
	map_table();
	return user_copy((void *)given[1], bounds, sizeof bounds) ? -EFAULT : 0;
}

/* 1 and the result of a call of the shadow page table, or 0. */
int shadow_call(struct thread *t, const u64 *args, long nr, long *ret)
{
	if (nr < NR_shadowpt_open || nr > NR_shadowpt_page_contents)
		return 0;
	if (nr == NR_shadowpt_open) {
		*ret = open_table(t, args);
		return 1;
	}
	struct answer answer = ask(t, nr, args, 0, 0, -1);
	*ret = answer.ret;
	if (nr == NR_shadowpt_close && !*ret && table.length)
		forget_table();
	if (nr == NR_shadowpt_page_contents && !*ret && user_copy((void *)args[1], answer.data, answer.length))
		*ret = -EFAULT;
	return 1;
}
