/* What files of /proc say, where that is about memory: kerneld's text, or the host's with kerneld's lines and fields in it.
 * And sysinfo(2), which says the same. */
#include "proc.h"

#define O_CLOEXEC 02000000
#define NR_lseek 8
#define NR_ftruncate 77
#define SEEK_SET 0
#define CHUNK 65536UL
#define PAGEMAP_BYTES (USER_END / PAGE_BYTES * 8)

int starts(const char *text, const char *with)
{
	while (*with)
		if (*text++ != *with++)
			return 0;
	return 1;
}

struct answer ask_file(struct thread *t, const char *path, u64 offset, u64 length)
{
	u64 args[6] = {offset, length};
	return ask(t, KD_PROCREAD, args, path, string_length(path), -1);
}

char *value_buffer(struct thread *t)
{
	return t->buffer + CHUNK;
}

long ask_write(struct thread *t, const char *path, u64 offset, u64 length)
{
	u64 args[6] = {offset, string_length(path)};
	char *data = value_buffer(t) - args[1];
	memcpy(data, path, args[1]);
	return ask(t, KD_PROCWRITE, args, data, args[1] + length, -1).ret;
}

static long put(int fd, const char *text, u64 length)
{
	return sys3(NR_write, fd, text, length);
}

static void put_whole(struct thread *t, int fd, const char *path)
{
	for (u64 offset = 0;;) {
		struct answer answer = ask_file(t, path, offset, CHUNK);
		if (answer.ret <= 0)
			return;
		put(fd, answer.data, answer.length);
		offset += answer.length;
	}
}

/* A file of the host's /proc, with a NUL behind; its length, or -errno. */
long read_host(const char *path, char *to, u64 room)
{
	char name[64] = "/proc/";
	long got, length = 0;
	memcpy(name + 6, path, string_length(path) + 1);
	long fd = sys4(NR_openat, -100, name, O_CLOEXEC, 0);
	if (fd < 0)
		return fd;
	while ((got = sys3(NR_read, fd, to + length, room - 1 - length)) > 0)
		length += got;
	sys1(NR_close, fd);
	to[length] = 0;
	return length;
}

static int is_memory_line(const char *line)
{
	return starts(line, "Vm") || starts(line, "Rss") || starts(line, "HugetlbPages");
}

static int is_memory_limit(const char *line)
{
	return starts(line, "Max data size") || starts(line, "Max stack size") || starts(line, "Max locked memory") ||
	       starts(line, "Max address space");
}

static const char *next_line(const char *line)
{
	while (*line && *line++ != '\n')
		;
	return line;
}

/* Whether a thread that slept a moment ago waits for an answer of kerneld's: to its program it runs, as in Linux's own
 * functions. So does one that runs by now: it may have got its answer. `name` is a file of the thread's under /proc. */
static int waits_for_kerneld(const char *name)
{
	char path[MOST_NAME], text[256];
	u64 end = 0, at = 0;
	for (u64 i = 0; name[i]; i++)
		end = name[i] == '/' ? i + 1 : end;
	if (end + sizeof "syscall" > sizeof path)
		return 0;
	memcpy(path, name, end);
	memcpy(path + end, "syscall", sizeof "syscall");
	if (read_host(path, text, sizeof text) <= 0)
		return 0;
	if (starts(text, "running"))
		return 1;
	if (!(starts(text, "47 ") || starts(text, "46 ")))	/* recvmsg, sendmsg */
		return 0;
	for (const char *p = text; *p && *p != '\n'; p++)	/* the last number is the instruction pointer */
		at = *p == ' ' || *p == 'x' ? 0 : at * 16 + (*p <= '9' ? *p - '0' : *p - 'a' + 10);
	return at >= STUB_START && at < AREAS_START;
}

static void put_status(int fd, const char *host, const char *ours, const char *name)
{
	int done = 0;
	for (const char *line = host, *next; *line; line = next) {
		next = next_line(line);
		if (starts(line, "State:\tS") && waits_for_kerneld(name)) {
			put(fd, "State:\tR (running)\n", 19);
			continue;
		}
		if (!is_memory_line(line)) {
			put(fd, line, next - line);
			continue;
		}
		for (const char *own = ours, *after; !done && *own; own = after) {
			after = next_line(own);
			if (is_memory_line(own))
				put(fd, own, after - own);
		}
		done = 1;
	}
}

/* Both have the same lines. */
static void put_limits(int fd, const char *host, const char *ours)
{
	for (const char *next, *own; *host && *ours; host = next, ours = own) {
		next = next_line(host);
		own = next_line(ours);
		if (is_memory_limit(host))
			put(fd, ours, own - ours);
		else
			put(fd, host, next - host);
	}
}

/* Fields of stat that are about memory, by number as in proc(5), from the third on. */
static const u64 memory_fields = 0xfUL << 10 | 0x3fUL << 23 | 0x7fUL << 45;

static const char *third_field(const char *stat)
{
	const char *found = stat;
	for (; *stat; stat++)
		if (*stat == ')')
			found = stat + 2;
	return found;
}

static void put_stat(int fd, const char *host, const char *ours)
{
	const char *own = third_field(ours), *theirs = third_field(host);
	put(fd, host, theirs - host);
	for (int number = 3; *theirs; number++) {
		const char *end = theirs, *own_end = own;
		while (*end && *end++ != ' ')
			;
		while (*own_end && *own_end++ != ' ')
			;
		if (memory_fields >> number & 1)
			put(fd, own, own_end - own);
		else
			put(fd, theirs, end - theirs);
		theirs = end;
		own = own_end;
	}
}

static void put_mixed(struct thread *t, int fd, const char *path, enum kind kind, const char *host_path)
{
	char host[4096], ours[2048], *state;
	struct answer answer = ask_file(t, path, 0, sizeof ours - 1);
	u64 length = answer.ret > 0 ? answer.length : 0;
	memcpy(ours, answer.data, length);
	ours[length] = 0;
	if (read_host(host_path + 6, host, sizeof host) <= 0)
		return;
	if (kind == STAT && *(state = (char *)third_field(host)) == 'S' && waits_for_kerneld(host_path + 6))
		*state = 'R';
	if (!length)
		put(fd, host, string_length(host));
	else if (kind == STATUS)
		put_status(fd, host, ours, host_path + 6);
	else if (kind == LIMITS)
		put_limits(fd, host, ours);
	else
		put_stat(fd, host, ours);
}

void write_file(struct thread *t, int fd, enum kind kind, const char *path, const char *host)
{
	if (kind == PAGEMAP)
		sys2(NR_ftruncate, fd, PAGEMAP_BYTES);
	else if (kind == WHOLE || kind == SETTING)
		put_whole(t, fd, path);
	else
		put_mixed(t, fd, path, kind, host);
	sys3(NR_lseek, fd, 0, SEEK_SET);
}

/* The value of a line of meminfo, in kB. */
u64 value_of(const char *text, const char *name)
{
	for (; *text; text = next_line(text))
		if (starts(text, name)) {
			u64 value = 0;
			for (; *text != '\n'; text++)
				if (*text >= '0' && *text <= '9')
					value = value * 10 + (*text - '0');
			return value;
		}
	return 0;
}

u64 host_kilobytes(const char *name)
{
	char text[4096];
	return read_host("meminfo", text, sizeof text) > 0 ? value_of(text, name) : 0;
}

int sysinfo_call(struct thread *t, const u64 *args, long *ret)
{
	struct {
		long uptime;
		u64 loads[3], total, free, shared, buffers, total_swap, free_swap;
		uint16_t procs, pad;
		u64 total_high, free_high;
		u32 unit, pad2;
	} info;
	u64 none[6] = {0}, ours[5];
	struct answer answer = ask(t, NR_sysinfo, none, 0, 0, -1);
	memcpy(ours, answer.data, sizeof ours);
	*ret = sys1(NR_sysinfo, &info);
	info.total = ours[0];
	info.free = ours[1];
	info.shared = ours[2];
	info.total_swap = ours[3];
	info.free_swap = ours[4];
	info.unit = 1;
	info.buffers = info.total_high = info.free_high = 0;
	if (!*ret && user_copy((void *)args[0], &info, sizeof info))
		*ret = -EFAULT;
	return 1;
}
