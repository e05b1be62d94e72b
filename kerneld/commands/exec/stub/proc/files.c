/* Files that are mapped in the machine, read and written by calls. On Linux both ways lead to one page cache; here the
 * cache of what is mapped is kerneld's, and calls are the host's. So before a call the host is given what has been written in
 * memory, and after one that writes kerneld reads what has changed.
 *
 * Nearly no file that is read or written is mapped: kerneld keeps a table of those in the first page of the RAM. */
#include "../gate/bounce.h"

#define BUCKETS 2048
#define NR_fstat 5
#define NR_lseek 8
#define SEEK_CUR 1
#define O_TRUNC 01000
#define WHOLE (1UL << 62)
#define S_IFMT 0170000
#define S_IFREG 0100000
#define S_IFIFO 0010000
#define S_IFSOCK 0140000
#define CHUNK 0xf000UL
#define MAX_IOVECS 1024
#define F_GETFL 3
#define O_DIRECT 040000
#define RLIMIT_FSIZE 1
#define NR_pread64 17
#define NR_pwrite64 18
#define NR_truncate 76
#define NR_creat 85
#define NR_openat2 437
#define O_WRONLY 1

enum { WRITTEN = 1, WRITE = 2, AT = 4, TRUNCATE = 8 };	/* shared/uapi/native.py */

static const unsigned char *mapped_files = (const unsigned char *)0x6a5000000000UL;

/* Map the table; once for each address space. */
void files_start(void)
{
	sys6(NR_mmap, (u64)mapped_files, PAGE_BYTES, 1, 0x11, process.ram_fd, 0);
}

struct look { int is_regular, is_plain, is_stream, bucket; u64 device, size; };

/* Look at a descriptor's file. A plain one is on a disk or in memory: its reads and writes wait for nobody. */
static struct look look_at(int fd)
{
	u64 status[18];
	struct look look = {0};
	if (fd < 0 || sys2(NR_fstat, fd, status))
		return look;
	u32 type = ((u32 *)status)[6] & S_IFMT;
	look.is_stream = type == S_IFIFO || type == S_IFSOCK || !type;	/* of no type: eventfd(2) and its like */
	if (type != S_IFREG)
		return look;
	look.is_regular = 1;
	look.device = status[0];
	look.size = status[6];
	look.is_plain = status[6] || status[8];	/* its size, its blocks: files of /proc have neither */
	look.bucket = (u32)((status[1] ^ status[0]) * 0x9e3779b1UL) >> 21;
	return look;
}

/* Tell whether a file may be mapped, or written through a mapping. */
static int is_mapped(const struct look *look, int writable)
{
	return look->is_regular && mapped_files[look->bucket + (writable ? BUCKETS : 0)];
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

/* kerneld makes the call, so that nothing comes between the file and the pages that are mapped of it. The data go through the
 * thread's buffer, as far as the program's memory can be read. */
static long write_through(struct thread *t, int fd, u64 from, u64 length, const u64 *offset)
{
	u64 done = 0;
	while (done < length) {
		u64 args[6] = {WRITE | (offset ? AT : 0), offset ? *offset + done : 0};
		u64 part = copy_in((u64)t->buffer, from + done, length - done < CHUNK ? length - done : CHUNK);
		long ret = part ? ask(t, KD_FILE_SYNC, args, t->buffer, part, fd).ret : -EFAULT;
		if (ret <= 0)
			return done ? (long)done : ret;
		done += ret;
		if ((u64)ret < part)
			break;
	}
	return done;
}

static long write_vector(struct thread *t, int fd, u64 at, u64 count, const u64 *given)
{
	long done = 0;
	if (count > MAX_IOVECS)
		return -EINVAL;
	for (u64 i = 0; i < count; i++) {
		u64 iovec[2], offset = given ? *given + done : 0;
		long ret = user_copy(iovec, (void *)(at + i * sizeof iovec), sizeof iovec) ? -EFAULT : (long)iovec[1] < 0 ? -EINVAL : 0;
		if (!ret && iovec[1])
			ret = write_through(t, fd, iovec[0], iovec[1], given ? &offset : 0);
		if (ret < 0)
			return done ? done : ret;
		done += ret;
		if ((u64)ret < iovec[1])
			break;
	}
	return done;
}

/* Copy from another descriptor: what sendfile(), splice() and copy_file_range() do. A result, or -EINVAL. */
static long copy_through(struct thread *t, int from, u64 from_offset, int to, u64 to_offset, u64 count)
{
	long done = 0, got;
	u64 source = 0, target = 0;
	if ((from_offset && user_copy(&source, (void *)from_offset, 8)) || (to_offset && user_copy(&target, (void *)to_offset, 8)))
		return -EFAULT;
	while ((u64)done < count) {
		u64 part = count - done < CHUNK ? count - done : CHUNK, args[6] = {WRITE | (to_offset ? AT : 0), target + done};
		got = from_offset ? sys4(NR_pread64, from, t->buffer, part, source + done) : sys3(NR_read, from, t->buffer, part);
		long ret = got <= 0 ? got : ask(t, KD_FILE_SYNC, args, t->buffer, got, to).ret;
		if (ret < got && !from_offset && got > 0)
			sys3(NR_lseek, from, (ret > 0 ? ret : 0) - got, SEEK_CUR);
		if (ret < 0 && !done)
			return ret;
		if (ret <= 0)
			break;
		done += ret;
		if ((u64)ret < part)
			break;
	}
	source += done, target += done;
	if ((from_offset && user_copy((void *)from_offset, &source, 8)) || (to_offset && user_copy((void *)to_offset, &target, 8)))
		return -EFAULT;
	return done;
}

/* Whether kerneld can write in the program's place: its limit of file sizes, and the alignment that O_DIRECT needs, are not the
 * program's. */
static int can_write_through(int fd)
{
	u64 limit[2] = {0};
	long flags = sys3(NR_fcntl, fd, F_GETFL, 0);
	return !sys2(NR_getrlimit, RLIMIT_FSIZE, limit) && !~limit[0] && flags >= 0 && !(flags & O_DIRECT);
}

static long write_mapped(struct thread *t, const u64 *args, long nr, int to)
{
	u64 truncate[6] = {TRUNCATE, args[1]};
	if (can_write_through(to))
		switch (nr) {
		case 1: case 18:
			return write_through(t, to, args[1], args[2], nr == 18 ? &args[3] : 0);
		case 20: case 296:
			return write_vector(t, to, args[1], args[2], nr == 296 ? &args[3] : 0);
		case 328:
			if (!args[5])
				return write_vector(t, to, args[1], args[2], ~args[3] ? &args[3] : 0);
			break;
		case 40:
			return copy_through(t, args[1], args[2], to, 0, args[3]);
		case 275: case 326:
			return copy_through(t, args[0], args[1], to, args[3], args[4]);
		case 77:
			return ask(t, KD_FILE_SYNC, truncate, 0, 0, to).ret;
		}
	sync(t, to, 0, 0, 0);
	long ret = direct_call(t, nr, args);
	if (ret >= 0)
		sync(t, to, WRITTEN, 0, WHOLE);
	return ret;
}

/* A file has been opened. Its descriptor, or -errno. */
long file_opened(struct thread *t, const u64 *args, long nr, long ret)
{
	u64 flags = nr == NR_open ? args[1] : nr == NR_openat ? args[2] : nr == NR_creat ? O_TRUNC | O_WRONLY : 0;
	if (ret < 0 || !opens_file(nr) || (nr == NR_openat2 && user_copy(&flags, (void *)args[2], sizeof flags)))
		return ret;
	if (flags & O_TRUNC) {
		struct look look = look_at(ret);
		if (is_mapped(&look, 0))
			sync(t, ret, WRITTEN, 0, 0);
	}
	return proc_opened(t, ret, flags);
}

int opens_file(long nr)
{
	return nr == NR_open || nr == NR_openat || nr == NR_creat || nr == NR_openat2;
}

static int truncate_call(struct thread *t, const u64 *args, long *ret)
{
	long length = user_strlen((const char *)args[0]);
	if (length < 0 || (u64)length >= PAGE_BYTES || user_copy(t->buffer, (const char *)args[0], length + 1))
		return 0;
	*ret = sys2(NR_truncate, t->buffer, args[1]);
	long fd = *ret ? -1 : sys3(NR_open, t->buffer, 02000001, 0);
	struct look look = look_at(fd);
	if (is_mapped(&look, 0))
		sync(t, fd, WRITTEN, 0, 0);
	if (fd >= 0)
		sys1(NR_close, fd);
	return 1;
}

static long plain_piece(int fd, int is_write, char *buffer, u64 user, u64 wanted, const u64 *offset, u64 done)
{
	u64 part = is_write ? copy_in((u64)buffer, user, wanted) : wanted;
	long nr = (is_write ? NR_write : NR_read) + (offset ? NR_pread64 : 0);
	long ret = part ? sys4(nr, fd, buffer, part, offset ? *offset + done : 0) : -EFAULT;
	if (ret <= 0 || is_write)
		return ret;
	u64 put = copy_out(user, (u64)buffer, ret);
	if (put < (u64)ret && !offset)
		sys3(NR_lseek, fd, put - ret, SEEK_CUR);
	return put ? (long)put : -EFAULT;
}

/* Read or write a plain file piece by piece. A read or write is one piece, if it is not very long: nobody else's comes in
 * between who has the same open file, or appends to it. (Linux makes no such promise for pread.) */
static long plain_file(struct thread *t, const u64 *args, int is_write, const u64 *offset)
{
	u64 user = args[1], length = args[2], most = BUFFER_BYTES, done = 0;
	char *buffer = t->buffer;
	room_begin(t);
	if (length > most && (is_write || !offset))
		fresh_room(t, length < BIG_BYTES ? length : BIG_BYTES);
	if (t->bounce.big) {
		buffer = (char *)t->bounce.big;
		most = t->bounce.big_bytes;
	}
	long ret = 0;
	while (done < length) {
		u64 wanted = length - done < most ? length - done : most;
		ret = plain_piece(args[0], is_write, buffer, user + done, wanted, offset, done);
		if (ret <= 0)
			break;
		done += ret;
		if ((u64)ret < wanted)
			break;
	}
	room_release(t);
	return done ? (long)done : ret;
}

/* Make a call on a file that is mapped, or on a plain one: 1 and its result, or 0 where the host makes it. */
int file_call(struct thread *t, const u64 *args, long nr, long *ret)
{
	int from, to;
	if (nr == NR_truncate)
		return truncate_call(t, args, ret);
	find_fds(args, nr, &from, &to);
	struct look source = look_at(from), target = look_at(to);
	t->reads_stream = source.is_stream;
	if ((source.is_regular && view_call(t, args, nr, from, source.device, source.size, 0, ret)) ||
	    (target.is_regular && view_call(t, args, nr, to, target.device, target.size, 1, ret)))
		return 1;
	if (is_mapped(&source, 1))
		sync(t, from, 0, 0, 0);
	if (is_mapped(&target, 0)) {
		*ret = write_mapped(t, args, nr, to);
		return 1;
	}
	int is_write = nr == NR_write || nr == NR_pwrite64;
	if (!(is_write ? target.is_plain : source.is_plain && (nr == NR_read || nr == NR_pread64)) || !args[2] || (long)args[2] < 0)
		return 0;
	*ret = plain_file(t, args, is_write, nr == NR_pread64 || nr == NR_pwrite64 ? &args[3] : 0);
	return 1;
}
