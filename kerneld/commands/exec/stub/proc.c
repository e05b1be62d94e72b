/* /proc as the program reads it: what tells of memory is kerneld's, of the program itself and of others in the machine.
 *
 * Where an open has led to such a file, by whatever name, a memory file with what kerneld says takes its place. It is
 * written anew whenever it is read from its beginning. pagemap, which has a word for each page there could be, is asked
 * for piece by piece, and so is mem. status, stat and limits are the host's, with kerneld's lines and fields about memory. */
#include "proc.h"

#define O_CLOEXEC 02000000
#define O_PATH 010000000
#define PROC_SUPER_MAGIC 0x9fa0
#define NR_fstatfs 138
#define NR_pwrite64 18
#define O_ACCMODE 3
#define NR_lseek 8
#define NR_pread64 17
#define NR_ftruncate 77
#define NR_memfd_create 319
#define SEEK_SET 0
#define SEEK_CUR 1
#define CHUNK 65536UL
#define MAX_FDS 1024
#define MOST_NAME 47
#define NR_sysinfo 99

static struct { unsigned char kind; char path[47]; } files[MAX_FDS];

static int is(const char *a, const char *b)
{
	while (*a && *a == *b)
		a++, b++;
	return *a == *b;
}

int is_own_exe(const char *path)
{
	u64 pid = 0;
	if (!starts(path, "/proc/"))
		return 0;
	path += 6;
	if (starts(path, "self/"))
		return is(path + 5, "exe");
	if (starts(path, "thread-self/"))
		return is(path + 12, "exe");
	while (*path >= '0' && *path <= '9')
		pid = pid * 10 + (*path++ - '0');
	return pid && *path == '/' && is(path + 1, "exe") && pid == (u64)sys0(NR_getpid);
}

static enum kind kind_of(const char *name)
{
	static const char *const whole[] = {"maps", "smaps", "smaps_rollup", "statm", "cmdline"};
	for (u64 i = 0; i < sizeof whole / sizeof *whole; i++)
		if (is(name, whole[i]))
			return WHOLE;
	static const struct { const char *name; enum kind kind; } others[] = {
		{"pagemap", PAGEMAP}, {"status", STATUS}, {"stat", STAT}, {"limits", LIMITS}, {"mem", MEM},
		/* of what the host maps; Linux can be built without them */
		{"numa_maps", MISSING}, {"map_files", MISSING},
	};
	for (u64 i = 0; i < sizeof others / sizeof *others; i++)
		if (is(name, others[i].name))
			return others[i].kind;
	return NO_FILE;
}

/* Tell what a path under /proc is, and put kerneld's name for it into `to`. */
static enum kind find_file(const char *path, char *to)
{
	static const char *const of_all[] = {"meminfo", "vmstat", "buddyinfo", "swaps", "sysvipc/shm", "kpagecount", "kpageflags"};
	const char *p = path + 6;
	char *end = to;
	if (!starts(path, "/proc/"))
		return NO_FILE;
	for (u64 i = 0; i < sizeof of_all / sizeof *of_all; i++)
		if (is(p, of_all[i])) {
			memcpy(to, p, string_length(p) + 1);
			return starts(p, "kpage") ? PAGEMAP : WHOLE;
		}
	if (starts(p, "sys/vm/") || is(p, "sys/kernel/randomize_va_space")) {
		memcpy(to, p, string_length(p) + 1);
		return WHOLE;
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

/* The name that the host has for an open file of /proc; its length, 0 for another file. */
static long name_of(int fd, char *name, long room)
{
	char link[32] = "/proc/self/fd/";
	u64 status[15];
	if (sys2(NR_fstatfs, fd, status) || status[0] != PROC_SUPER_MAGIC)
		return 0;
	put_number(link + 14, fd);
	long length = sys3(NR_readlink, link, name, room - 1);
	name[length > 0 ? length : 0] = 0;
	return length > 0 && length < room - 1 ? length : 0;
}

static long replace(struct thread *t, int fd, enum kind kind, const char *name, u64 flags)
{
	long made = sys2(NR_memfd_create, "proc", 1);
	if (made < 0)
		return made;
	write_file(t, made, kind, name);
	sys3(NR_dup3, made, fd, flags & O_CLOEXEC);
	sys1(NR_close, made);
	return fd;
}

/* A file has been opened: the descriptor, or -errno where it is one that the program does not get. */
long proc_opened(struct thread *t, int fd, u64 flags)
{
	char path[64], name[64];
	proc_forget(fd);
	if (flags & O_PATH || !name_of(fd, path, MOST_NAME))
		return fd;
	enum kind kind = find_file(path, name);
	struct answer answer = {0};
	if (kind != NO_FILE) {
		int is_of_process = kind == MEM || kind == MISSING;
		u64 end = 0;
		while (is_of_process && name[end] != '/')
			end++;
		if (is_of_process)
			memcpy(name + end, "/statm", 7);
		answer = ask_file(t, name, 0, 8);
	}
	if (kind == NO_FILE || answer.ret == -ENOENT || answer.ret == -ESRCH)
		return fd;	/* the host's, or of a process of the host's */
	long ret = answer.ret < 0 ? answer.ret : kind == MISSING ? -ENOENT : flags & O_ACCMODE && kind != MEM ? -EACCES : fd;
	if (ret >= 0 && kind != MEM && !(t->is_borrower && kind == PAGEMAP))
		ret = replace(t, fd, kind, name, flags);
	if (ret < 0)
		sys1(NR_close, fd);
	else if (fd < MAX_FDS && !t->is_borrower) {
		files[fd].kind = kind;
		memcpy(files[fd].path, name, string_length(name) + 1);
	}
	return ret;
}

/* Memory of a process in the machine is kerneld's to copy: the host would find pages missing. */
static int mem_call(struct thread *t, const u64 *args, long nr, long *ret)
{
	int fd = args[0], is_at = nr == NR_pread64 || nr == NR_pwrite64, is_write = nr == NR_write || nr == NR_pwrite64;
	u64 offset = is_at ? args[3] : (u64)sys3(NR_lseek, fd, 0, SEEK_CUR), pid = 0;
	for (const char *p = files[fd].path; *p >= '0' && *p <= '9'; p++)
		pid = pid * 10 + (*p - '0');
	u64 call[6] = {pid ? pid : (u64)sys0(NR_getpid), offset, args[1], args[2], is_write};
	keys_before_call(t);
	*ret = ask_ret(t, KD_MEM_RW, call);
	if (*ret == -ESRCH)
		*ret = 0;
	if (*ret > 0 && !is_at)
		sys3(NR_lseek, fd, offset + *ret, SEEK_SET);
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
	if (files[fd].kind == MEM)
		return mem_call(t, args, nr, ret);
	if (nr != NR_read && nr != NR_pread64)
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

/* What is to be mapped by a descriptor: of a file that stands for one of /proc, that one, on a new descriptor, so that
 * kerneld refuses it as Linux does. -1 for another file. */
long proc_real_file(u64 fd)
{
	char path[64] = "/proc/";
	if (fd >= MAX_FDS || files[fd].kind == NO_FILE || files[fd].kind == MEM || this_thread()->is_borrower)
		return -1;
	memcpy(path + 6, files[fd].path, string_length(files[fd].path) + 1);
	return sys4(NR_openat, -100, path, O_CLOEXEC, 0);
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
	if (nr == NR_read || nr == NR_pread64 || nr == NR_write || nr == NR_pwrite64)
		return proc_read(t, args, nr, ret);
	if (nr == NR_sysinfo)
		return sysinfo_call(t, args, ret);
	return 0;
}
