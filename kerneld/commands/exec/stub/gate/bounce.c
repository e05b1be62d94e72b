/* The host's calls on copies of what they read and write. A page of the program may be taken away at any moment: by
 * reclaim, by the fork of another thread. The host's kernel, which then finds no mapping, would say EFAULT, perhaps with
 * what it has read lost. So the host never sees the program's memory: what a call reads is copied to the stub's own memory
 * before the call, what it has written is copied to the program's after it, as much as it has written.
 *
 * A call that does not wait is made here and now. One that may wait is made by the gate, where signals find it as the
 * program's own; behind it there is a `hlt`, which brings it back here.
 *
 * Where a copy cannot be made (a bad pointer, a length that is too large) the host gets the program's own pointer, and
 * itself says what is wrong with it, in its own order. */
#include "args.h"
#include "bounce.h"
#include "../proc/hidden.h"

#define MAX_IOVECS 1024
#define SECTOR_BYTES 512
#define MOST_AT 0x10000
#define IS_INT 2
#define MOST_RECORDS 0x100000	/* in one answer of epoll_wait(): far below what it refuses */
#define AT_SYMLINK_NOFOLLOW 0x100
#define SIGEV_THREAD 2

static int add_out(struct thread *t, u32 kind, u64 user, u64 at, u64 length, u64 where)
{
	if (t->bounce.outs == MOST_OUTS)
		return -1;
	outs_of(t)[t->bounce.outs++] = (struct out){user, at, length, where, kind, 0};
	return 0;
}

static u64 reads(struct thread *t, u64 user, u64 length)
{
	u64 room = length, at = take_room(t, &room);
	return at && room == length && copy_in(at, user, length) == length ? at : 0;
}

/* A structure that the host reads and writes, or writes in part. */
static u64 updates(struct thread *t, u64 user, u64 length)
{
	u64 at = reads(t, user, length);
	return at && !add_out(t, FIXED, user, at, length, 0) ? at : 0;
}

/* A path, from a directory's descriptor. A program's link in /proc names the stub: the host gets the path of the program. */
static u64 string(struct thread *t, u64 user, int directory, int follows)
{
	long length = user_strlen((const char *)user);
	u64 at = length < 0 || (u64)length >= PAGE_BYTES ? 0 : reads(t, user, length + 1), room;
	char exe[EXE_BYTES];
	if (at)
		hide_name(t, (char *)at, directory);
	if (!at || !follows || length >= MOST_EXE || !(length = exe_of((const char *)at, exe)))
		return at;
	room = length + 1;
	at = take_room(t, &room);
	if (at)
		memcpy((void *)at, exe, room);
	return at;
}

/* A string of which the host reads `most` bytes at the most. */
static u64 name(struct thread *t, u64 user, u64 most)
{
	u64 at = take_room(t, &most);
	if (!at)
		return 0;
	u64 length = copy_in(at, user, most);
	for (u64 i = 0; i < length; i++)
		if (!((const char *)at)[i])
			return at;
	return length == most ? at : 0;
}

/* Whether a call that names a file by a path goes through a link at its end. */
static int follows_links(long nr, const u64 *args)
{
	switch (nr) {
	case 2: case 4: case 21: case 257: case 269: case 437: case 439:	/* open, stat, access and their like */
		return 1;
	case 262:	/* newfstatat */
		return !(args[3] & AT_SYMLINK_NOFOLLOW);
	case 332:	/* statx */
		return !(args[2] & AT_SYMLINK_NOFOLLOW);
	}
	return 0;
}

/* Source: Linux v6.8 arch/x86/include/asm/uaccess_64.h: __access_ok(). */
static int is_user(u64 start, u64 length)
{
	return start + length >= start && (int64_t)(start + length) >= 0;
}

/* How much a buffer's copy is moved up: one of whole sectors, in the program's memory, may be for O_DIRECT. */
static u64 to_sector(u64 at, u64 user, u64 length)
{
	return (user | length) % SECTOR_BYTES ? 0 : -at % SECTOR_BYTES;
}

/* A buffer, as far as there is room. */
static u64 buffer(struct thread *t, u64 user, u64 *length, int write)
{
	if (!is_user(user, *length) || !*length)
		return 0;
	u64 up = to_sector(t->bounce.next, user, *length);
	if (up < t->bounce.end - t->bounce.next)
		t->bounce.next += up;
	u64 at = take_room(t, length);
	if (!at)
		return 0;
	if (write)
		return add_out(t, SPREAD, user, at, *length, 0) ? 0 : at;
	return copy_in(at, user, *length) == *length ? at : 0;
}

struct user_iovec { u64 base, length; };

/* Iovecs: the copy names copies. *count becomes how many are used. 0 where the host is to see the program's own. */
static u64 iovecs(struct thread *t, u64 user, u64 *count, int write)
{
	if (*count > MAX_IOVECS || !*count)
		return 0;
	struct user_iovec *copy = (struct user_iovec *)reads(t, user, *count * sizeof *copy);
	if (!copy)
		return 0;
	u64 total = 0;
	for (u64 i = 0; i < *count; i++)
		total += copy[i].length < HUGE_BYTES ? (copy[i].length + 63 + to_sector(1, copy[i].base, copy[i].length)) & -64UL : HUGE_BYTES;
	reserve_room(t, total);
	for (u64 i = 0; i < *count; i++) {
		u64 wanted = copy[i].length, length = wanted, at = 0;
		if ((int64_t)wanted < 0 || !is_user(copy[i].base, wanted))
			return 0;
		if (wanted)
			at = buffer(t, copy[i].base, &length, write);
		if (wanted && !at)
			return 0;
		copy[i] = (struct user_iovec){at, length};
		if (length < wanted) {
			*count = i + 1;
			break;
		}
	}
	return *count ? (u64)copy : 0;
}

/* Iovecs whose pages the host keeps: each piece lies in fresh pages, as it lies in its own. *count as above. */
static u64 pages(struct thread *t, u64 user, u64 *count)
{
	struct user_iovec *copy = *count && *count <= MAX_IOVECS ? (struct user_iovec *)reads(t, user, *count * sizeof *copy) : 0;
	u64 total = 0, got = 0;
	if (!copy)
		return 0;
	for (u64 i = 0; i < *count; i++) {
		if ((int64_t)copy[i].length < 0 || !is_user(copy[i].base, copy[i].length))
			return 0;
		total += (copy[i].length < BIG_BYTES ? copy[i].length : BIG_BYTES) + 2 * PAGE_BYTES;
	}
	fresh_room(t, total);
	for (u64 i = 0; i < *count; i++) {
		u64 wanted = copy[i].length, length = wanted, base = copy[i].base, at = 0;
		t->bounce.next = ((t->bounce.next + PAGE_BYTES - 1) & -PAGE_BYTES) + base % PAGE_BYTES;
		if (wanted && t->bounce.big && t->bounce.next < t->bounce.end && (at = take_room(t, &length)))
			length = copy_in(at, base, length);
		got += length;
		copy[i] = (struct user_iovec){at, at ? length : 0};
		if (copy[i].length < wanted)
			*count = i + 1;
	}
	return got ? (u64)copy : 0;
}

struct user_msghdr { u64 name; u32 namelen, pad; u64 iov, iovlen, control, controllen; u32 flags, pad2; };

static u64 part(struct thread *t, u64 user, u64 length, int write, u64 where)
{
	u64 at = reads(t, user, length);
	return at && write && add_out(t, LENGTH, user, at, length, where) ? 0 : at;
}

/* A message in place: what it points at is copied. -1 where the host is to see the program's own. */
static int message(struct thread *t, u64 user, struct user_msghdr *copy, int write)
{
	if (copy->name && copy->namelen && !(copy->name = part(t, copy->name, copy->namelen, write, (u64)&copy->namelen)))
		return -1;
	if (copy->control && copy->controllen &&
	    !(copy->control = part(t, copy->control, copy->controllen, write, (u64)&copy->controllen)))
		return -1;
	if (copy->iovlen) {
		u64 count = copy->iovlen;
		copy->iov = iovecs(t, copy->iov, &count, write);
		copy->iovlen = count;
		if (!copy->iov)
			return -1;
	}
	if (!write)
		return 0;
	return add_out(t, FIXED, user + 8, (u64)&copy->namelen, 4, 0) || add_out(t, FIXED, user + 40, (u64)&copy->controllen, 12, 0);
}

static u64 one_message(struct thread *t, u64 user, int write)
{
	struct user_msghdr *copy = (struct user_msghdr *)reads(t, user, sizeof *copy);
	if (!copy || (write && add_out(t, BUDGET, 0, 0, 1, 0)))
		return 0;
	return message(t, user, copy, write) ? 0 : (u64)copy;
}

#define MMSG_BYTES 64
#define MSG_LEN 56

/* Messages; *count becomes how many there is room for. */
static u64 messages(struct thread *t, u64 user, u64 *count, int write)
{
	*count = (u32)*count > MAX_IOVECS ? MAX_IOVECS : (u32)*count;
	u64 at = *count ? reads(t, user, *count * MMSG_BYTES) : 0;
	for (u64 i = 0; at && i < *count; i++) {
		u64 of_user = user + i * MMSG_BYTES, own = at + i * MMSG_BYTES;
		u32 before = t->bounce.outs;
		if ((write && add_out(t, BUDGET_AT, 0, 0, i, own + MSG_LEN)) || message(t, of_user, (struct user_msghdr *)own, write) ||
		    add_out(t, FIXED, of_user + MSG_LEN, own + MSG_LEN, 4, 0)) {
			t->bounce.outs = before;
			*count = i;
		}
	}
	return *count ? at : 0;
}

/* A System V message: a long, and then the text. */
static u64 msgbuf(struct thread *t, u64 user, u64 *length, int write)
{
	u64 all = *length + sizeof(u64), at;
	if (*length > HUGE_BYTES || (write && add_out(t, BUDGET, 0, sizeof(u64), 1, 0)))
		return 0;
	at = buffer(t, user, &all, write);
	if (at && !write && all < *length + sizeof(u64))
		return 0;
	*length = at ? all - sizeof(u64) : *length;
	return at;
}

/* A struct sigevent. If a thread is to be notified, its value names 32 bytes. Source: Linux v6.8 ipc/mqueue.c:do_mq_notify(). */
static u64 sigevent(struct thread *t, u64 user)
{
	u64 *event = (u64 *)reads(t, user, 64);
	if (event && (u32)(event[1] >> 32) == SIGEV_THREAD)
		event[0] = reads(t, event[0], 32);
	return (u64)event;
}

/* Room for what a call tells, as much as its result says; `other` is how much the program has. What the host would refuse as
 * too much, or as negative, it is to see as it is. */
static u64 got(struct thread *t, const struct pointer *pointer, u64 at, u64 *other)
{
	int is_int = pointer->bytes > 1 || pointer->write == IS_INT;
	u64 length = is_int ? (u32)*other : *other, result;
	if (pointer->bytes > 1 ? length > MOST_RECORDS : !is_user(at, length) || (is_int && (int)length < 0))
		return 0;
	length *= pointer->bytes;
	length = length > HUGE_BYTES ? HUGE_BYTES / pointer->bytes * pointer->bytes : length;
	if (!length || add_out(t, BUDGET, 0, 0, pointer->bytes, 0) || !(result = buffer(t, at, &length, 1)))
		return 0;
	*other = length / pointer->bytes;
	return result;
}

/* Copy what one pointer argument names; its place in the copy, or 0. */
static u64 copy_pointer(struct thread *t, long nr, const struct pointer *pointer, u64 *args)
{
	u64 at = args[pointer->argument], *other = &args[pointer->other], length = *other, result;
	switch (pointer->how) {
	case BYTES:
		return pointer->write ? updates(t, at, pointer->bytes) : reads(t, at, pointer->bytes);
	case BITS:
		return (u32)*other > 0x10000 ? 0 : updates(t, at, (*other + 63) / 64 * 8);
	case BY:
		length = *other * pointer->bytes;
		if (*other > BIG_BYTES || !length)
			return 0;
		return pointer->write ? updates(t, at, length) : reads(t, at, length);
	case DATA:
		result = buffer(t, at, &length, 0);
		*other = result ? length : *other;
		return result;
	case GOT:
		return got(t, pointer, at, other);
	case AT:	/* its length has been copied: it is the pointer that comes first in the row */
		length = *other >= STUB_START && *other < STUB_END ? *(u32 *)*other : 0;
		return length && length <= MOST_AT ? part(t, at, length, 1, *other) : 0;
	case STRING:
		return string(t, at, pointer->argument ? (int)args[pointer->argument - 1] : AT_FDCWD, follows_links(nr, args));
	case NAME:
		return name(t, at, pointer->bytes);
	case IOVECS:
		if (pointer->write && add_out(t, BUDGET, 0, 0, 1, 0))
			return 0;
		result = iovecs(t, at, &length, pointer->write);
		*other = result ? length : *other;
		return result;
	case PAGES:
		result = pages(t, at, &length);
		*other = result ? length : *other;
		return result;
	case MSGHDR:
		return one_message(t, at, pointer->write);
	case MMSGHDR:
		result = messages(t, at, &length, pointer->write);
		*other = result ? length : *other;
		return result;
	case SIGMASK: {
		u64 *pair = (u64 *)reads(t, at, 16);
		if (pair && pair[0])
			pair[0] = reads(t, pair[0], 8);
		return (u64)pair;
	}
	case MSGBUF:
		return msgbuf(t, at, other, pointer->write);
	case SIGEVENT:
		return sigevent(t, at);
	}
	return 0;
}

/* Replace the pointers of a call by copies. */
void bounce_in(struct thread *t, const struct row *row, u64 *args)
{
	room_begin(t);
	for (int i = 0; i < MOST_POINTERS && row->pointers[i].how; i++) {
		const struct pointer *pointer = &row->pointers[i];
		u32 outs = t->bounce.outs;
		u64 at = args[pointer->argument] ? copy_pointer(t, row->nr, pointer, args) : 0;
		if (at)
			args[pointer->argument] = at;
		else
			t->bounce.outs = outs;
	}
}

/* Copy to the program what the call has written; the call's result, or -EFAULT where that cannot be done. */
long bounce_out(struct thread *t, long ret)
{
	u64 left = 0;
	int is_copied = ret >= 0 || ret == -EINTR;
	for (u32 i = 0; i < t->bounce.outs && is_copied; i++) {
		const struct out *out = &outs_of(t)[i];
		u64 length = out->length, said = out->kind == LENGTH || out->kind == BUDGET_AT ? *(u32 *)out->where : 0;
		switch (out->kind) {
		case LENGTH:
			length = said < length ? said : length;
			break;
		case BUDGET:
			left = ret < 0 ? 0 : ret * length + out->at;
			continue;
		case BUDGET_AT:
			left = ret > 0 && (u64)ret > length ? said : 0;
			continue;
		case SPREAD:
			length = left < length ? left : length;
			left -= length;
		}
		if (length && user_copy((void *)out->user, (void *)out->at, length))
			ret = -EFAULT;
	}
	room_release(t);
	return ret;
}

/* A call that was not made, or is to be made again. */
void bounce_drop(struct thread *t)
{
	room_release(t);
}
