/* /proc, and some of /sys, as the program reads and writes it: what tells of memory is kerneld's, of the program itself and
 * of others in the machine. What is read by them is in proc_text.c.
 *
 * Where an open has led to such a file, by whatever name, a memory file with what kerneld says takes its place: a view. It is
 * written anew whenever it is read from its beginning. pagemap, which has a word for each page there could be, is asked
 * for piece by piece, and so is mem. status, stat and limits are the host's, with kerneld's lines and fields about memory.
 * What is written to a setting goes to kerneld.
 *
 * A view's name is the host's name for its file, behind a letter for the rights with which it was opened. So it stays
 * what it is wherever its descriptor goes: by dup, fork, vfork and execve, or to another process by a socket. */
#include "proc.h"

#define O_CLOEXEC 02000000
#define O_PATH 010000000
#define PROC_SUPER_MAGIC 0x9fa0
#define SYSFS_MAGIC 0x62656572
#define NR_fstatfs 138
#define NR_pwrite64 18
#define O_ACCMODE 3
#define F_GETFL 3
#define O_WRONLY 1
#define O_RDWR 2
#define NR_lseek 8
#define NR_fstat 5
#define NR_pread64 17
#define NR_readv 19
#define NR_writev 20
#define NR_ftruncate 77
#define NR_preadv 295
#define NR_pwritev 296
#define NR_preadv2 327
#define NR_pwritev2 328
#define NR_copy_file_range 326
#define NR_fallocate 285
#define SEEK_SET 0
#define SEEK_CUR 1
#define CHUNK 65536UL
#define MAX_IOVECS 1024
#define PREFIX "/memfd:kerneld:"	/* behind it the letter, then the host's name */
static const char rights[] = "rwb";	/* by the access mode of the open */

struct view { enum kind kind; char rights, host[MOST_NAME], name[MOST_NAME]; };
struct piece { u64 user, length; };

int is(const char *a, const char *b)
{
	while (*a && *a == *b)
		a++, b++;
	return *a == *b;
}

static enum kind kind_of(const char *name)
{
	static const char *const whole[] = {"maps", "smaps", "smaps_rollup", "statm", "cmdline", "ksm_stat", "ksm_merging_pages", "personality"};
	for (u64 i = 0; i < sizeof whole / sizeof *whole; i++)
		if (is(name, whole[i]))
			return WHOLE;
	static const struct { const char *name; enum kind kind; } others[] = {
		{"pagemap", PAGEMAP}, {"status", STATUS}, {"stat", STAT}, {"limits", LIMITS}, {"mem", MEM},
		{"oom_score", WHOLE}, {"oom_score_adj", SETTING}, {"clear_refs", SETTING},
		/* of what the host maps; Linux can be built without them */
		{"numa_maps", MISSING}, {"map_files", MISSING},
	};
	for (u64 i = 0; i < sizeof others / sizeof *others; i++)
		if (is(name, others[i].name))
			return others[i].kind;
	return NO_FILE;
}

static void put_name(char *to, const char *name)
{
	memcpy(to, name, string_length(name) + 1);
}

static const char *skip_digits(const char *p)
{
	while (*p >= '0' && *p <= '9')
		p++;
	return p;
}

/* Tell what a path of the host's is, and put kerneld's name for it into `to`. */
static enum kind find_file(const char *path, char *to)
{
	static const char *const of_all[] = {"meminfo", "vmstat", "buddyinfo", "swaps", "sysvipc/shm", "kpagecount", "kpageflags"};
	const char *p = path + 6, *name;
	if (starts(path, "/sys/kernel/mm/")) {
		put_name(to, path + 1);
		return SETTING;
	}
	if (!starts(path, "/proc/"))
		return NO_FILE;
	for (u64 i = 0; i < sizeof of_all / sizeof *of_all; i++)
		if (is(p, of_all[i])) {
			put_name(to, p);
			return starts(p, "kpage") ? PAGEMAP : WHOLE;
		}
	if (starts(p, "sys/vm/") || starts(p, "sys/kernel/shm") || is(p, "sys/kernel/randomize_va_space")) {
		put_name(to, p);
		return SETTING;
	}
	name = skip_digits(p);
	if (name == p || *name++ != '/')
		return NO_FILE;
	memcpy(to, p, name - p);
	to += name - p;
	if (starts(name, "task/")) {
		name = skip_digits(name + 5);
		if (*name++ != '/')
			return NO_FILE;
	}
	enum kind kind = kind_of(name);
	if (kind != NO_FILE)
		put_name(to, name);
	return kind;
}

/* The host's name for an open file; its length, 0 for none that fits. */
long name_of(int fd, char *name, long room)
{
	char link[32] = "/proc/self/fd/";
	put_number(link + 14, fd);
	long length = sys3(NR_readlink, link, name, room - 1);
	name[length > 0 ? length : 0] = 0;
	return length > 0 && length < room - 1 ? length : 0;
}

int is_of_system(int fd)
{
	u64 status[15];
	return !sys2(NR_fstatfs, fd, status) && (status[0] == PROC_SUPER_MAGIC || status[0] == SYSFS_MAGIC);
}

/* The device on which the host has its memory files: the RAM is one. */
static u64 memory_device(void)
{
	static u64 device;
	u64 status[18];
	if (!device && !sys2(NR_fstat, process.ram_fd, status))
		device = status[0];
	return device;
}

long view_name(const char *memory_file, char *to, long room)
{
	long length = 0;
	if (!starts(memory_file, PREFIX))
		return 0;
	for (const char *name = memory_file + sizeof PREFIX; name[length] && name[length] != ' ' && length < room - 1; length++)
		to[length] = name[length];
	to[length] = 0;
	return length;
}

/* Find out what a descriptor leads to, by its file's device and size: a view, or mem, which is the host's file. */
static struct view find_view(int fd, u64 device, u64 size)
{
	struct view view = {.kind = NO_FILE, .rights = 'b'};
	char link[sizeof PREFIX + MOST_NAME];
	if (device == memory_device()) {
		if (!name_of(fd, link, sizeof link) || !starts(link, PREFIX))
			return view;
		view.rights = link[sizeof PREFIX - 1];
		view_name(link, view.host, MOST_NAME);
		view.kind = find_file(view.host, view.name);
	} else if (!size && !(device >> 8 & 0xfff) && is_of_system(fd) && name_of(fd, view.host, MOST_NAME)) {
		view.kind = find_file(view.host, view.name) == MEM ? MEM : NO_FILE;
		if (view.kind == MEM)
			view.rights = rights[sys3(NR_fcntl, fd, F_GETFL, 0) & O_ACCMODE];
	}
	return view;
}

static long replace(struct thread *t, int fd, enum kind kind, const char *host, const char *name, u64 flags)
{
	char made_name[MOST_NAME + 16] = "kerneld:";
	made_name[8] = rights[flags & O_ACCMODE];
	put_name(made_name + 9, host);
	long made = sys2(NR_memfd_create, made_name, 1);
	if (made < 0)
		return made;
	write_file(t, made, kind, name, host);
	sys3(NR_dup3, made, fd, flags & O_CLOEXEC);
	sys1(NR_close, made);
	return fd;
}

/* Whether kerneld has the file, and the program may open it so: 0 or -errno. */
static long ask_open(struct thread *t, enum kind kind, const char *name, u64 mode)
{
	char other[MOST_NAME];
	put_name(other, name);
	if (kind == MEM || kind == MISSING)
		put_name((char *)skip_digits(other), "/statm");
	if (kind == SETTING && mode) {
		long ret = ask_write(t, name, 0, 0);
		if (ret < 0 || mode == O_WRONLY)
			return ret;
	}
	return ask_file(t, other, 0, 8).ret;
}

/* A file has been opened: the descriptor, or -errno where it is one that the program does not get. */
long proc_opened(struct thread *t, int fd, u64 flags)
{
	char host[MOST_NAME], name[MOST_NAME];
	u64 mode = flags & O_ACCMODE;
	if (flags & O_PATH || mode == O_ACCMODE || !is_of_system(fd) || !name_of(fd, host, sizeof host))
		return fd;
	enum kind kind = find_file(host, name);
	long ret = kind == NO_FILE ? -ENOENT : ask_open(t, kind, name, mode);
	if (ret == -ENOENT || ret == -ESRCH)
		return fd;	/* the host's, or of a process of the host's */
	if (ret >= 0)
		ret = kind == MISSING ? -ENOENT : mode && kind != MEM && kind != SETTING ? -EACCES : fd;
	if (ret >= 0 && kind != MEM)
		ret = replace(t, fd, kind, host, name, flags);
	if (ret < 0)
		sys1(NR_close, fd);
	return ret;
}

/* Memory of a process in the machine is kerneld's to copy: the host would find pages missing. */
static long move_memory(struct thread *t, const struct view *view, u64 user, u64 length, u64 offset, int is_write)
{
	u64 pid = 0;
	for (const char *p = view->name; *p >= '0' && *p <= '9'; p++)
		pid = pid * 10 + (*p - '0');
	if (!is_write && is_vdso(offset))
		return read_vdso(user, length, offset);
	u64 call[6] = {pid, offset, user, length, !!is_write};
	keys_before_call(t);
	return ask_ret(t, KD_MEM_RW, call);
}

static long read_pagemap(struct thread *t, const struct view *view, u64 to, u64 length, u64 offset)
{
	u64 done = 0;
	while (done < length) {
		u64 part = length - done < CHUNK ? length - done : CHUNK;
		struct answer answer = ask_file(t, view->name, offset + done, part);
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

/* Write a setting: all pieces are one value. Source: Linux v6.8 fs/proc/proc_sysctl.c:proc_sys_call_handler(). */
static long write_setting(struct thread *t, const struct view *view, const struct piece *pieces, u64 count, u64 offset)
{
	char *text = value_buffer(t);
	u64 length = 0;
	for (u64 i = 0; i < count; i++) {
		u64 part = pieces[i].length < MOST_VALUE - length ? pieces[i].length : MOST_VALUE - length;
		if (copy_in((u64)text + length, pieces[i].user, part) < part)
			return -EFAULT;
		length += part;
	}
	return length ? ask_write(t, view->name, offset, length) : 0;
}

static long move_pieces(struct thread *t, const struct view *view, const struct piece *pieces, u64 count, u64 offset, int is_write)
{
	long done = 0;
	if (view->kind == SETTING)
		return write_setting(t, view, pieces, count, offset);
	for (u64 i = 0; i < count; i++) {
		u64 user = pieces[i].user, length = pieces[i].length;
		long ret = view->kind == MEM ? move_memory(t, view, user, length, offset + done, is_write)
					     : read_pagemap(t, view, user, length, offset + done);
		if (ret < 0)
			return done ? done : ret;
		done += ret;
		if ((u64)ret < length)
			break;
	}
	return done;
}

enum { READS = 1, WRITES = 2, AT = 4, VECTOR = 8 };

/* What a call does with a file: 0 where it is not one that reads or writes memory of the program. */
static int way_of(const u64 *args, long nr)
{
	switch (nr) {
	case NR_read: case NR_write:
		return nr == NR_read ? READS : WRITES;
	case NR_pread64: case NR_pwrite64:
		return AT | (nr == NR_pread64 ? READS : WRITES);
	case NR_readv: case NR_writev:
		return VECTOR | (nr == NR_readv ? READS : WRITES);
	case NR_preadv: case NR_pwritev:
		return VECTOR | AT | (nr == NR_preadv ? READS : WRITES);
	case NR_preadv2: case NR_pwritev2:
		return VECTOR | (~args[3] ? AT : 0) | (nr == NR_preadv2 ? READS : WRITES);
	}
	return 0;
}

/* Read or write what kerneld has piece by piece, or a setting. */
static long move(struct thread *t, const struct view *view, const u64 *args, int way)
{
	int fd = args[0];
	u64 offset = way & AT ? args[3] : (u64)sys3(NR_lseek, fd, 0, SEEK_CUR), count = way & VECTOR ? args[2] : 1;
	struct piece one = {args[1], args[2]}, *pieces = way & VECTOR ? (struct piece *)((u64)t + PAGE_BYTES + BUFFER_BYTES) : &one;
	if (count > MAX_IOVECS)
		return -EINVAL;
	if (way & VECTOR && user_copy(pieces, (void *)args[1], count * sizeof *pieces))
		return -EFAULT;
	long ret = move_pieces(t, view, pieces, count, offset, way & WRITES);
	if (ret > 0 && !(way & AT))
		sys3(NR_lseek, fd, offset + ret, SEEK_SET);
	return ret;
}

/* A call that changes a view in another way, or copies from one that is asked for piece by piece. */
static long refuse(const struct view *view, long nr)
{
	if (nr == NR_ftruncate)
		return view->kind == SETTING && view->rights != 'r' ? 0 : -EINVAL;
	return nr == NR_copy_file_range ? -EXDEV : nr == NR_fallocate ? -EOPNOTSUPP : -EINVAL;
}

/* Have a view say what is so now, where it is read from its beginning. Returns whether there is anything at that place: a file
 * of /proc/sys has nothing but at its beginning. */
static int refresh(struct thread *t, int fd, const struct view *view, const u64 *args, int way)
{
	long position = sys3(NR_lseek, fd, 0, SEEK_CUR);
	if (way & AT ? args[3] : (u64)position)
		return view->kind != SETTING || !starts(view->host, "/proc/sys/");
	sys2(NR_ftruncate, fd, 0);
	sys3(NR_lseek, fd, 0, SEEK_SET);
	write_file(t, fd, view->kind, view->name, view->host);
	sys3(NR_lseek, fd, position, SEEK_SET);
	return 1;
}

/* Make a call on a file that may be a view, from which it reads, or which it changes: 1 and its result, or 0 where the
 * host makes it. */
int view_call(struct thread *t, const u64 *args, long nr, int fd, u64 device, u64 size, int changes, long *ret)
{
	struct view view = find_view(fd, device, size);
	int way = way_of(args, nr), is_piecewise = view.kind == PAGEMAP || view.kind == MEM;
	if (view.kind == NO_FILE)
		return 0;
	if (view.rights == (changes ? 'r' : 'w')) {
		*ret = nr == NR_ftruncate ? -EINVAL : -EBADF;
	} else if (changes ? way & WRITES : is_piecewise && way & READS) {
		*ret = move(t, &view, args, way);
	} else if (changes || is_piecewise) {
		*ret = refuse(&view, nr);
	} else {
		*ret = 0;
		return !refresh(t, fd, &view, args, way);
	}
	/* mem of a process that is none of kerneld's, or has ended */
	return view.kind != MEM || *ret != -ESRCH;
}

/* What is to be mapped by a descriptor: of a view, the host's file, on a new descriptor, so that kerneld refuses it as Linux
 * does. -1 for another file. */
long proc_real_file(int fd)
{
	u64 status[18];
	if (fd < 0 || sys2(NR_fstat, fd, status))
		return -1;
	struct view view = find_view(fd, status[0], status[6]);
	if (view.kind == NO_FILE || view.kind == MEM)
		return -1;
	return sys4(NR_openat, -100, view.host, O_CLOEXEC | (view.rights == 'r' ? 0 : view.rights == 'w' ? O_WRONLY : O_RDWR), 0);
}
