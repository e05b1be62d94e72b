/* /proc as the program reads it: what tells of memory is kerneld's, of the program itself and of others in the machine.
 *
 * An open of such a file gives a memory file with what kerneld says. It is written anew whenever it is read from its
 * beginning. pagemap, which has a word for each page there could be, is asked for piece by piece. status and stat are
 * the host's, with kerneld's lines and fields about memory. */
#include "native.h"

#define O_ACCMODE 3
#define O_CLOEXEC 02000000
#define O_PATH 010000000
#define O_DIRECTORY 0200000
#define NR_lseek 8
#define NR_pread64 17
#define NR_ftruncate 77
#define NR_memfd_create 319
#define SEEK_SET 0
#define SEEK_CUR 1
#define CHUNK 65536UL
#define PAGEMAP_BYTES (USER_END / PAGE_BYTES * 8)
#define MAX_FDS 1024

enum kind { NO_FILE, WHOLE, PAGEMAP, STATUS, STAT };
static struct { unsigned char kind; char path[47]; } files[MAX_FDS];

static int is(const char *a, const char *b)
{
	while (*a && *a == *b)
		a++, b++;
	return *a == *b;
}

static int starts(const char *text, const char *with)
{
	while (*with)
		if (*text++ != *with++)
			return 0;
	return 1;
}

static enum kind kind_of(const char *name)
{
	static const char *const whole[] = {"maps", "smaps", "smaps_rollup", "statm", "cmdline"};
	for (u64 i = 0; i < sizeof whole / sizeof *whole; i++)
		if (is(name, whole[i]))
			return WHOLE;
	return is(name, "pagemap") ? PAGEMAP : is(name, "status") ? STATUS : is(name, "stat") ? STAT : NO_FILE;
}

/* Tell what a path under /proc is, and put kerneld's name for it into `to`. */
static enum kind find_file(const char *path, char *to)
{
	static const char *const of_all[] = {"meminfo", "vmstat", "buddyinfo", "kpagecount", "kpageflags"};
	const char *p = path + 6;
	char *end = to;
	if (!starts(path, "/proc/"))
		return NO_FILE;
	for (u64 i = 0; i < sizeof of_all / sizeof *of_all; i++)
		if (is(p, of_all[i])) {
			memcpy(to, p, string_length(p) + 1);
			return starts(p, "kpage") ? PAGEMAP : WHOLE;
		}
	if (starts(p, "self/") || starts(p, "thread-self/")) {
		p += p[0] == 's' ? 5 : 12;
		memcpy(to, "self/", 5);
		end = to + 5;
	} else {
		while (*p >= '0' && *p <= '9' && end < to + 10)
			*end++ = *p++;
		if (end == to || *p++ != '/')
			return NO_FILE;
		*end++ = '/';
	}
	if (starts(p, "task/")) {
		p += 5;
		while (*p >= '0' && *p <= '9')
			p++;
		if (*p++ != '/')
			return NO_FILE;
	}
	enum kind kind = kind_of(p);
	if (kind != NO_FILE)
		memcpy(end, p, string_length(p) + 1);
	return kind;
}

static struct answer ask_file(struct thread *t, const char *path, u64 offset, u64 length)
{
	u64 args[6] = {offset, length};
	return ask(t, KD_PROCREAD, args, path, string_length(path), -1);
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

/* The host's file of the same name; its length. */
static long read_host(const char *path, char *to, u64 room)
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

static const char *next_line(const char *line)
{
	while (*line && *line++ != '\n')
		;
	return line;
}

static void put_status(int fd, const char *host, const char *ours)
{
	int done = 0;
	for (const char *line = host, *next; *line; line = next) {
		next = next_line(line);
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

static void put_mixed(struct thread *t, int fd, const char *path, enum kind kind)
{
	char host[4096], ours[2048];
	struct answer answer = ask_file(t, path, 0, sizeof ours - 1);
	u64 length = answer.ret > 0 ? answer.length : 0;
	memcpy(ours, answer.data, length);
	ours[length] = 0;
	if (read_host(path, host, sizeof host) <= 0)
		return;
	if (!length)
		put(fd, host, string_length(host));
	else if (kind == STATUS)
		put_status(fd, host, ours);
	else
		put_stat(fd, host, ours);
}

static void write_file(struct thread *t, int fd, enum kind kind, const char *path)
{
	if (kind == PAGEMAP)
		sys2(NR_ftruncate, fd, PAGEMAP_BYTES);
	else if (kind == WHOLE)
		put_whole(t, fd, path);
	else
		put_mixed(t, fd, path, kind);
	sys3(NR_lseek, fd, 0, SEEK_SET);
}

static int proc_open(struct thread *t, const u64 *args, long nr, long *ret)
{
	int at = nr != NR_open;
	u64 flags = args[at + 1];
	char path[64] = {0}, name[64];
	long length = user_strlen((const char *)args[at]);
	if (length < 7 || length > 46 || flags & (O_ACCMODE | O_PATH | O_DIRECTORY))
		return 0;
	memcpy(path, (const char *)args[at], length);
	enum kind kind = find_file(path, name);
	if (kind == NO_FILE)
		return 0;
	struct answer answer = ask_file(t, name, 0, 8);
	if (answer.ret == -ENOENT || answer.ret == -ESRCH)
		return 0;	/* a process of the host's */
	if (answer.ret < 0) {
		*ret = answer.ret;
		return 1;
	}
	long fd = sys2(NR_memfd_create, "proc", flags & O_CLOEXEC ? 1 : 0);
	if (fd >= 0 && fd < MAX_FDS) {
		files[fd].kind = kind;
		memcpy(files[fd].path, name, string_length(name) + 1);
		write_file(t, fd, kind, name);
	}
	*ret = fd;
	return 1;
}

static long read_pagemap(struct thread *t, int fd, u64 to, u64 length, u64 offset)
{
	u64 done = 0;
	while (done < length) {
		u64 part = length - done < CHUNK ? length - done : CHUNK;
		struct answer answer = ask_file(t, files[fd].path, offset + done, part);
		if (answer.ret < 0)
			return done ? (long)done : answer.ret;
		if (user_copy((void *)(to + done), answer.data, answer.length))
			return done ? (long)done : -EFAULT;
		done += answer.length;
		if (answer.length < part)
			break;
	}
	return done;
}

static int proc_read(struct thread *t, const u64 *args, long nr, long *ret)
{
	int fd = args[0];
	if (args[0] >= MAX_FDS || files[fd].kind == NO_FILE || t->is_borrower)
		return 0;
	long offset = nr == NR_pread64 ? (long)args[3] : sys3(NR_lseek, fd, 0, SEEK_CUR);
	if (files[fd].kind == PAGEMAP) {
		*ret = read_pagemap(t, fd, args[1], args[2], offset);
		if (nr == NR_read && *ret > 0)
			sys3(NR_lseek, fd, offset + *ret, SEEK_SET);
		return 1;
	}
	if (offset == 0) {
		sys2(NR_ftruncate, fd, 0);
		sys3(NR_lseek, fd, 0, SEEK_SET);
		write_file(t, fd, files[fd].kind, files[fd].path);
	}
	return 0;
}

/* A descriptor has been closed, or has become a copy of another. */
void proc_forget(u64 fd)
{
	if (fd < MAX_FDS && !this_thread()->is_borrower)
		files[fd].kind = NO_FILE;
}

void proc_copy(u64 fd, long copy)
{
	if (copy < 0 || copy >= MAX_FDS || this_thread()->is_borrower)
		return;
	if (fd < MAX_FDS)
		files[copy] = files[fd];
	else
		files[copy].kind = NO_FILE;
}

int proc_call(struct thread *t, const u64 *args, long nr, long *ret)
{
	if (nr == NR_open || nr == NR_openat)
		return proc_open(t, args, nr, ret);
	if (nr == NR_read || nr == NR_pread64)
		return proc_read(t, args, nr, ret);
	return 0;
}
