/* Core dumps. The host writes them; but to the host the program's memory is the RAM's, as far as the TLB happens to have it.
 * So before a thread ends by a signal that dumps core, it makes the memory true: what kerneld's maps show is mapped there,
 * private, shared or of the real file, with what kerneld's pages hold. All that decides what a dump has is then
 * the host's: coredump_filter, limits, core_pattern. Source: Linux v6.8 fs/coredump.c: vma_dump_size(), do_coredump().
 *
 * Meanwhile the other threads wait where they come into the stub, and the agent, for which there is no TLB any more,
 * acknowledges without a drop. Nobody else waits for any of this. A thread that waits here ends by SIGKILL as any. */
#include "../proc/proc.h"

#define RLIMIT_CORE 4
#define PR_GET_DUMPABLE 3
#define NR_fstat 5
#define O_RDWR 2
#define O_NONBLOCK 04000
#define O_CLOEXEC 02000000
#define MAP_ANONYMOUS 0x20
#define MAP_FIXED_NORESERVE 0x4010
#define MADV_WILLNEED 3
#define MADV_DONTFORK 10
#define MADV_DONTDUMP 16
#define FUTEX_WAIT_PRIVATE 128
#define FUTEX_WAKE_PRIVATE 129
#define EVERYBODY 0x7fffffff
#define TEXT_START 0x6a6800000000UL
#define TEXT_BYTES 0x4000000UL	/* of smaps: some 60,000 mappings */
#define CHUNK 65536UL
#define WINDOW (CHUNK / 8)	/* pages that are looked at, at a time */
#define PM_FILE (1UL << 61)
#define PM_SWAP (1UL << 62)
#define PM_PRESENT (1UL << 63)

/* A mapping, as smaps shows it. */
struct mapping { u64 start, end, prot, key, offset, inode, resident; int is_shared, is_left_out; char *name; };

static u64 pages_left;	/* how many may be copied: the host needs memory for each */

static void sleep_on(const void *word, u32 value)
{
	static const u64 a_millisecond[2] = {0, 1000000};
	sys4(NR_futex, word, FUTEX_WAIT_PRIVATE, value, a_millisecond);
}

static u32 state(void)
{
	return __atomic_load_n(&process.dump, __ATOMIC_SEQ_CST);
}

static void set_state(u32 new)
{
	__atomic_store_n(&process.dump, new, __ATOMIC_SEQ_CST);
	sys3(NR_futex, &process.dump, FUTEX_WAKE_PRIVATE, EVERYBODY);
}

/* Wait while another thread dumps core: 1 if that was given up; 0 for the thread itself that dumps. */
int dump_wait(struct thread *t)
{
	for (u32 now = state(); now; now = state()) {
		if (process.dumper == t)
			return 0;
		sys4(NR_futex, &process.dump, FUTEX_WAIT_PRIVATE, now, 0);
	}
	return 1;
}

/* The same for a thread that comes by a fault of the program: 1 where the program goes on, in memory that is true now. */
int dump_settles_fault(struct thread *t)
{
	for (u32 now = state(); now && now != DUMP_IS_READY && process.dumper != t; now = state())
		sys4(NR_futex, &process.dump, FUTEX_WAIT_PRIVATE, now, 0);
	return state() == DUMP_IS_READY && process.dumper != t;
}

/* Whether the host would write a core. Source: Linux v6.8 fs/coredump.c:do_coredump(). */
static int is_wanted(void)
{
	u64 limit[2] = {0};
	char first = 0;
	if (sys0(NR_getpid) == 1 || !sys2(NR_prctl, PR_GET_DUMPABLE, 0) || sys2(NR_getrlimit, RLIMIT_CORE, limit))
		return 0;
	long fd = sys2(NR_open, "/proc/sys/kernel/core_pattern", O_CLOEXEC);
	if (fd >= 0) {
		sys3(NR_read, fd, &first, 1);
		sys1(NR_close, fd);
	}
	return first == '|' ? limit[0] != 1 : limit[0] >= PAGE_BYTES;
}

/* Have the other threads wait, and nobody map or drop any more. 0 where others share this memory: it is theirs too. */
static int take_memory(struct thread *t)
{
	u32 none = 0;
	if (t->is_sharer || t->is_borrower)
		return 0;
	while (!__atomic_compare_exchange_n(&process.dump, &none, DUMP_BEGINS, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
		dump_wait(t);
		none = 0;
	}
	process.dumper = t;
	if (process.has_sharers || __atomic_load_n(&process.sharers_begin, __ATOMIC_SEQ_CST)) {
		set_state(0);
		return 0;
	}
	for (int i = 0; i < MAX_AREAS; i++) {
		struct thread *other = area_at(i);
		u64 mapping;
		while (other && other != t && (mapping = __atomic_load_n(&other->mapping, __ATOMIC_SEQ_CST)))
			sleep_on(&other->mapping, mapping);
	}
	tlb_unmap(0, USER_END);
	set_state(DUMP_OWNS_MEMORY);
	while (__atomic_load_n(&process.agent_drops, __ATOMIC_SEQ_CST))
		sleep_on(&process.agent_drops, 1);
	return 1;
}

/* Open the file of a mapping; -1 where its path does not lead to it (any more). */
static int open_file(struct thread *t, const struct mapping *m)
{
	u64 status[18], args[6] = {0};
	int is_written = m->is_shared && m->prot & 2;
	if (!m->inode || m->name[0] != '/')
		return -1;
	long fd = sys2(NR_open, m->name, O_CLOEXEC | O_NONBLOCK | (is_written ? O_RDWR : 0));
	if (fd >= 0 && (sys2(NR_fstat, fd, status) || status[1] != m->inode)) {
		sys1(NR_close, fd);
		return -1;
	}
	if (fd >= 0)
		ask(t, KD_FILE_SYNC, args, 0, 0, fd);
	return fd;
}

static int is_zero(const u64 *words, u64 length)
{
	for (u64 i = 0; i < length / 8; i++)
		if (words[i])
			return 0;
	return 1;
}

/* Put a page in its place; -1 where that cannot be done. What the host cannot have there is left out: a file is shorter now. */
static int put_page(u64 at, const char *data, int is_file)
{
	struct { u64 base, length; } from = {(u64)data, PAGE_BYTES}, to = {at, PAGE_BYTES};
	if (!is_file && is_zero((const u64 *)data, PAGE_BYTES))
		return 0;
	if (!pages_left--)
		return -1;
	long ret = sys6(NR_process_vm_writev, sys0(NR_getpid), (long)&from, 1, (long)&to, 1, 0);
	return ret < 0 && ret != -EFAULT ? -1 : 0;
}

/* Copy pages from kerneld; one that it cannot give is left out. */
static int copy_pages(struct thread *t, u64 start, u64 end, int is_file)
{
	while (start < end) {
		struct answer answer = ask_file(t, "self/mem", start, end - start);
		u64 got = answer.ret > 0 ? answer.length & -PAGE_BYTES : 0;
		for (u64 done = 0; done < got; done += PAGE_BYTES)
			if (put_page(start + done, answer.data + done, is_file))
				return -1;
		start += got ? got : PAGE_BYTES;
	}
	return 0;
}

/* Tell which pages of a window are to be copied; how many. Of a real file those that are the process's own. Memory that is
 * shared and of no file is also what others have written; what of it is in swap has no entry, and comes into memory first. */
static u64 find_pages(struct thread *t, const struct mapping *m, u64 start, u64 pages, int is_file, char *wanted)
{
	struct answer answer = ask_file(t, "self/pagemap", start / PAGE_BYTES * 8, pages * 8);
	const u64 *words = (const u64 *)answer.data;
	u64 args[6] = {start, pages * PAGE_BYTES}, resident = 0;
	for (u64 i = 0; i < pages; i++) {
		u64 word = answer.ret > 0 && i < answer.length / 8 ? words[i] : 0;
		resident += (word & (PM_PRESENT | PM_SWAP)) != 0;
		wanted[i] = word & PM_SWAP || (word & PM_PRESENT && !(is_file && word & PM_FILE));
	}
	if (m->is_shared && !is_file) {
		args[2] = MADV_WILLNEED;
		ask(t, NR_madvise, args, 0, 0, -1);
		answer = ask(t, NR_mincore, args, 0, 0, -1);
		for (u64 i = 0; !answer.ret && i < answer.length; i++)
			wanted[i] |= answer.data[i] & 1;
	}
	return resident;
}

static int copy_mapping(struct thread *t, const struct mapping *m, int is_file)
{
	char wanted[WINDOW];
	u64 resident = 0;
	for (u64 start = m->start; start < m->end && (resident < m->resident || m->is_shared); start += WINDOW * PAGE_BYTES) {
		u64 pages = (m->end - start) / PAGE_BYTES < WINDOW ? (m->end - start) / PAGE_BYTES : WINDOW;
		resident += find_pages(t, m, start, pages, is_file, wanted);
		for (u64 i = 0, count; i < pages; i += count) {
			for (count = 0; i + count < pages && count < CHUNK / PAGE_BYTES && wanted[i + count]; count++)
				;
			if (copy_pages(t, start + i * PAGE_BYTES, start + (i + count) * PAGE_BYTES, is_file))
				return -1;
			count += !count;
		}
	}
	return 0;
}

/* Make a mapping, which does not meet the stub, true; -1 where that cannot be done. */
static int make_part_true(struct thread *t, const struct mapping *m)
{
	int fd = open_file(t, m), is_file = fd >= 0, keeps_file = is_file && m->is_shared;
	int is_copied = !keeps_file && !m->is_left_out && (m->resident || m->is_shared);
	u64 length = m->end - m->start, how = MAP_FIXED_NORESERVE | (m->is_shared ? 1 : 2) | (is_file ? 0 : MAP_ANONYMOUS);
	long at = sys6(NR_mmap, m->start, length, is_copied ? 3 : (long)m->prot, how, fd, is_file ? m->offset : 0);
	if (is_file)
		sys1(NR_close, fd);
	if (at != (long)m->start)
		return -1;
	if (is_copied && copy_mapping(t, m, is_file))
		return -1;
	if (m->key)
		sys4(NR_pkey_mprotect, m->start, length, m->prot, m->key);
	else if (is_copied)
		sys3(NR_mprotect, m->start, length, m->prot);
	if (m->is_left_out)
		sys3(NR_madvise, m->start, length, MADV_DONTDUMP);
	return 0;
}

/* Make a mapping true; -1 where that cannot be done. One without access may lie where the stub is: what is around it is true. */
static int make_true(struct thread *t, const struct mapping *m)
{
	struct mapping below = *m, above = *m;
	if (m->end <= STUB_START || m->start >= STUB_END)
		return make_part_true(t, m);
	below.end = STUB_START;
	above.start = STUB_END;
	above.offset += STUB_END - m->start;
	if (below.start < below.end && make_part_true(t, &below))
		return -1;
	return above.start < above.end ? make_part_true(t, &above) : 0;
}

static u64 take_number(char **text, u64 base)
{
	u64 number = 0;
	for (;; ++*text) {
		char c = **text;
		u64 digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : base;
		if (digit >= base)
			return number;
		number = number * base + digit;
	}
}

/* The line of a mapping: addresses, rights, offset, device, inode, name. */
static struct mapping take_header(char *line)
{
	struct mapping m = {.start = take_number(&line, 16)};
	line++;
	m.end = take_number(&line, 16);
	m.prot = (line[1] == 'r') | (line[2] == 'w') << 1 | (line[3] == 'x') << 2;
	m.is_shared = line[4] == 's';
	line += 6;
	m.offset = take_number(&line, 16);
	line++;
	take_number(&line, 16);
	line++;
	take_number(&line, 16);
	line++;
	m.inode = take_number(&line, 10);
	while (*line == ' ')
		line++;
	m.name = line;
	return m;
}

static int has_flag(const char *flags, const char *flag)
{
	for (; flags[0] && flags[1]; flags++)
		if (flags[0] == ' ' && flags[1] == flag[0] && flags[2] == flag[1])
			return 1;
	return 0;
}

/* Make all mappings of a text true; the text is cut into lines by that. */
static int make_all_true(struct thread *t, char *text)
{
	struct mapping m = {0};
	for (char *line = text, *end; *line; line = end + 1) {
		for (end = line; *end != '\n'; end++)
			;
		*end = 0;
		char *number = line;
		while (*number && !(*number >= '0' && *number <= '9'))
			number++;
		if ((*line >= '0' && *line <= '9') || (*line >= 'a' && *line <= 'f')) {
			m = take_header(line);
		} else if (starts(line, "Rss:") || starts(line, "Swap:")) {
			m.resident += take_number(&number, 10) * 1024 / PAGE_BYTES;
		} else if (starts(line, "ProtectionKey:")) {
			m.key = take_number(&number, 10);
		} else if (starts(line, "VmFlags:")) {
			m.is_left_out = has_flag(line, "dd");
			if (make_true(t, &m))
				return -1;
		}
	}
	return 0;
}

/* Read smaps whole; 0 where there are too many mappings. */
static char *read_mappings(struct thread *t)
{
	char *text = (char *)TEXT_START;
	u64 length = 0;
	if (sys6(NR_mmap, TEXT_START, TEXT_BYTES, 3, 0x4032, -1, 0) != (long)TEXT_START)
		return 0;
	sys3(NR_madvise, TEXT_START, TEXT_BYTES, MADV_DONTFORK);
	for (;;) {
		struct answer answer = ask_file(t, "self/smaps", length, CHUNK);
		if (answer.ret < 0 || length + answer.length + 1 > TEXT_BYTES)
			return 0;
		if (!answer.ret)
			return text;
		memcpy(text + length, answer.data, answer.length);
		length += answer.length;
	}
}

/* Not inlined: tests stop a thread here. */
__attribute__((noinline)) void make_memory_true(struct thread *t)
{
	pages_left = host_kilobytes("MemAvailable:") * 1024 / PAGE_BYTES / 2;
	char *text = read_mappings(t);
	if (!text || make_all_true(t, text))
		tlb_unmap(0, USER_END);
	sys3(NR_madvise, STUB_START, STUB_END - STUB_START, MADV_DONTDUMP);
	set_state(DUMP_IS_READY);
}

/* The thread is about to end by a signal that dumps core: if there is to be one, give it the memory of the program. What cannot
 * be given whole is not given at all. */
void dump_memory(struct thread *t)
{
	descriptors_widen();
	if (is_wanted() && take_memory(t))
		make_memory_true(t);
	descriptors_narrow();
}
