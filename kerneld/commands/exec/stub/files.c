/* Files that are mapped in the machine, read and written by calls. On Linux both ways lead to one page cache; here the
 * cache of what is mapped is kerneld's, and calls are the host's. So before a call the host is given what has been written in
 * memory, and after one that writes kerneld reads what has changed.
 *
 * Nearly no file that is read or written is mapped: kerneld keeps a table of those in the first page of the RAM. */
#include "native.h"

#define BUCKETS 2048
#define NR_fstat 5
#define NR_lseek 8
#define SEEK_CUR 1
#define O_TRUNC 01000
#define WHOLE (1UL << 62)
#define S_IFMT 0170000
#define S_IFREG 0100000
#define WRITTEN 1

static const unsigned char *mapped_files = (const unsigned char *)0x6a5000000000UL;

/* Map the table; once for each address space. */
void files_start(void)
{
	sys6(NR_mmap, (u64)mapped_files, PAGE_BYTES, 1, 0x11, process.ram_fd, 0);
}

/* Tell whether a descriptor's file may be mapped, or written through a mapping. */
static int is_mapped(int fd, int writable)
{
	u64 status[18];
	if (sys2(NR_fstat, fd, status) || (((u32 *)status)[6] & S_IFMT) != S_IFREG)
		return 0;
	u32 hash = (u32)((status[1] ^ status[0]) * 0x9e3779b1UL) >> 21;
	return mapped_files[hash + (writable ? BUCKETS : 0)];
}

static void sync(struct thread *t, int fd, u64 flags, u64 offset, u64 length)
{
	u64 args[6] = {flags, offset, length};
	ask(t, KD_FILE_SYNC, args, 0, 0, fd);
}

/* Which descriptor a call reads from and which it writes to; -1 for none. */
static void find_fds(const u64 *args, long nr, int *from, int *to)
{
	*from = *to = -1;
	switch (nr) {
	case 0: case 17: case 19: case 295: case 327:	/* read, pread64, readv, preadv, preadv2 */
		*from = args[0];
		break;
	case 1: case 18: case 20: case 296: case 328: case 77: case 285:	/* write …, ftruncate, fallocate */
		*to = args[0];
		break;
	case 40:	/* sendfile */
		*from = args[1];
		*to = args[0];
		break;
	case 275: case 326:	/* splice, copy_file_range */
		*from = args[0];
		*to = args[2];
		break;
	}
}

static long make(const u64 *args, long nr)
{
	return sys6(nr, args[0], args[1], args[2], args[3], args[4], args[5]);
}

static long write_mapped(struct thread *t, const u64 *args, long nr, int to)
{
	sync(t, to, 0, 0, 0);
	long ret = make(args, nr);
	if (ret < 0)
		return ret;
	if (nr == 1 || nr == 20)
		sync(t, to, WRITTEN, sys3(NR_lseek, to, 0, SEEK_CUR) - ret, ret);
	else if (nr == 18)
		sync(t, to, WRITTEN, args[3], ret);
	else
		sync(t, to, WRITTEN, 0, WHOLE);
	return ret;
}

/* truncate() and an open with O_TRUNC name the file by its path. */
static int path_call(struct thread *t, const u64 *args, long nr, long *ret)
{
	int at = nr == NR_openat;
	if (nr == 76) {
		*ret = make(args, nr);
		long fd = *ret ? -1 : sys3(NR_open, args[0], 02000001, 0);
		if (fd >= 0) {
			if (is_mapped(fd, 0))
				sync(t, fd, WRITTEN, 0, WHOLE);
			sys1(NR_close, fd);
		}
		return 1;
	}
	if ((nr != NR_open && nr != NR_openat) || !(args[at + 1] & O_TRUNC))
		return 0;
	*ret = make(args, nr);
	if (*ret >= 0 && is_mapped(*ret, 0))
		sync(t, *ret, WRITTEN, 0, WHOLE);
	return 1;
}

/* Make a call on a file that is mapped: 1 and its result, or 0 where the file is none, or what it reads is as the host has it.
 * The buffers have been faulted in. */
int file_call(struct thread *t, const u64 *args, long nr, long *ret)
{
	int from, to;
	if (path_call(t, args, nr, ret))
		return 1;
	find_fds(args, nr, &from, &to);
	if (from >= 0 && is_mapped(from, 1))
		sync(t, from, 0, 0, 0);
	if (to < 0 || !is_mapped(to, 0))
		return 0;
	*ret = write_mapped(t, args, nr, to);
	return 1;
}
