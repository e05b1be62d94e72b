/* The calls of the shadow page table, made by a program inside: kerneld's. The table lies over the program's own memory:
 * a mapping of the host's that is no page of the RAM, and so none of the TLB. It is mapped again after a drop. */
#include "../native.h"

#define NR_fstat 5
#define OPEN_HOST 1
#define MAP_SHARED_FIXED 0x11
#define SEGV_ACCERR 2

/* The calls of a semester (process.abi, as KERNELD_ABI of shared/c/preload.c), in the order of their numbers: open, close,
 * start, stop, page_contents; enable is open and start in one. */
struct semester { u32 abi, layout, first; char calls[6]; };
static const struct semester semesters[] = {{24, 0, 462, "ocstp"}, {23, 23, 451, "ecp"}, {25, 0, 467, "ocst"}, {251, 251, 467, "oc"}};

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

static long open_table(struct thread *t, const struct semester *semester, const u64 *given)
{
	int has_faults = semester->layout == 251;
	u64 status[18];
	u64 args[6] = {given[0], given[1], semester->layout, OPEN_HOST}, bounds[3] = {0, given[2], given[1]};
	if (!has_faults && user_copy(bounds, (void *)given[1], sizeof bounds))
		return -EFAULT;
	struct answer answer = ask(t, NR_shadowpt_open, args, bounds, sizeof bounds, -1);
	if (answer.ret < 0)
		return answer.ret;
	memcpy(bounds, answer.data, sizeof bounds);
	sys1(NR_close, answer.fd[1]);
	/* As many pages as the kernel has, whatever the bounds say: more would lie over other memory of the program. */
	long ret = sys2(NR_fstat, answer.fd[0], status);
	if (ret) {
		sys1(NR_close, answer.fd[0]);
		return ret;
	}
	table.fd = hide_fd(answer.fd[0]);
	table.start = bounds[2];
	table.length = status[6];
	map_table();
	return !has_faults && user_copy((void *)given[1], bounds, sizeof bounds) ? -EFAULT : 0;
}

static long close_table(struct thread *t)
{
	u64 none[6] = {0};
	long ret = ask_ret(t, NR_shadowpt_close, none);
	if (!ret && table.length)
		forget_table();
	return ret;
}

static long enable_table(struct thread *t, const struct semester *semester, const u64 *given)
{
	u64 none[6] = {0};
	long ret = open_table(t, semester, given);
	if (ret)
		return ret;
	ret = ask_ret(t, NR_shadowpt_start, none);
	if (ret)
		close_table(t);
	return ret;
}

static const struct semester *find_semester(void)
{
	for (u64 i = 1; i < sizeof semesters / sizeof *semesters; i++)
		if (semesters[i].abi == process.abi)
			return &semesters[i];
	return &semesters[0];
}

/* 1 and the result of a call of the shadow page table, or 0. */
int shadow_call(struct thread *t, const u64 *args, long nr, long *ret)
{
	const struct semester *semester = find_semester();
	u64 number = nr - semester->first;
	if (number >= string_length(semester->calls))
		return 0;
	switch (semester->calls[number]) {
	case 'o':
		*ret = open_table(t, semester, args);
		break;
	case 'e':
		*ret = enable_table(t, semester, args);
		break;
	case 'c':
		*ret = close_table(t);
		break;
	case 's':
		*ret = ask_ret(t, NR_shadowpt_start, args);
		break;
	case 't':
		*ret = ask_ret(t, NR_shadowpt_stop, args);
		break;
	case 'p': {
		struct answer answer = ask(t, NR_shadowpt_page_contents, args, 0, 0, -1);
		*ret = answer.ret ? answer.ret : user_copy((void *)args[1], answer.data, answer.length) ? -EFAULT : 0;
	}
	}
	return 1;
}
