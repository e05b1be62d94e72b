/* The stub's own memory for the copies that a host's call is given (bounce.c): a small room of each thread, behind what it
 * is to copy back, and more where a call needs it. */
#include "../gate/bounce.h"

#define BIG_START 0x6a2000000000UL
#define HUGE_START 0x6a7100000000UL
#define HUGE_PLACES 30
#define SMALL_BYTES (BOUNCE_BYTES - MOST_OUTS * sizeof(struct out))
#define MAP_BIG 0x4022		/* private, anonymous, without a reserve of swap */
#define MAP_FIXED 0x10
#define MAP_FIXED_NOREPLACE 0x100000

static u64 big_of(struct thread *t)
{
	return BIG_START + (gate_of(t) - AREAS_START) / AREA_BYTES * BIG_BYTES;
}

void room_begin(struct thread *t)
{
	room_release(t);	/* of a call that has been given up */
	t->bounce.outs = 0;
	t->bounce.next = (u64)(outs_of(t) + MOST_OUTS);
	t->bounce.end = t->bounce.next + SMALL_BYTES;
}

void room_release(struct thread *t)
{
	if (t->bounce.big)
		sys2(NR_munmap, t->bounce.big, t->bounce.big_bytes);
	t->bounce.big = 0;
}

static u64 map_big(u64 at, u64 bytes, u64 how)
{
	return sys6(NR_mmap, at, bytes, 3, MAP_BIG | how, -1, 0) == (long)at ? at : 0;
}

/* Each thread has a place for 32 MiB, and few have more at a time. */
void fresh_room(struct thread *t, u64 need)
{
	u64 number = (gate_of(t) - AREAS_START) / AREA_BYTES, bytes = (need + PAGE_BYTES - 1) & -PAGE_BYTES, big = 0;
	bytes = bytes < HUGE_BYTES ? bytes : HUGE_BYTES;
	for (u64 i = 0; bytes > BIG_BYTES && i < HUGE_PLACES && !big; i++)
		big = map_big(HUGE_START + (number + i) % HUGE_PLACES * HUGE_BYTES, bytes, MAP_FIXED_NOREPLACE);
	if (!big) {
		bytes = BIG_BYTES;
		big = map_big(big_of(t), bytes, MAP_FIXED);
	}
	if (big) {
		t->bounce.big = t->bounce.next = big;
		t->bounce.big_bytes = bytes;
		t->bounce.end = big + bytes;
	}
}

/* Have room for so many bytes, if there is none. */
void reserve_room(struct thread *t, u64 need)
{
	if (need > t->bounce.end - t->bounce.next && !t->bounce.big)
		fresh_room(t, need);
}

u64 take_room(struct thread *t, u64 *length)
{
	u64 need = (*length + 63) & -64UL;
	reserve_room(t, need);
	u64 room = t->bounce.end - t->bounce.next, at = t->bounce.next;
	if (!room)
		return 0;
	if (*length > room)
		*length = room;
	t->bounce.next += need < room ? need : room;
	return at;
}

/* Copy as much as there is up to a page of the program that cannot be had; how much that is. `user` is the one of `to` and
 * `from` that is the program's. */
static u64 copy(u64 to, u64 from, u64 length, u64 user)
{
	u64 done = 0;
	if (!user_copy((void *)to, (void *)from, length))
		return length;
	while (done < length) {
		u64 room = PAGE_BYTES - (user + done) % PAGE_BYTES;
		room = room < length - done ? room : length - done;
		if (user_copy((void *)(to + done), (void *)(from + done), room))
			break;
		done += room;
	}
	return done;
}

u64 copy_in(u64 to, u64 from, u64 length)
{
	return copy(to, from, length, from);
}

u64 copy_out(u64 to, u64 from, u64 length)
{
	return copy(to, from, length, to);
}

/* After a fork: what other threads had here. */
void room_forget(void)
{
	sys2(NR_munmap, BIG_START, BIG_BYTES * MAX_AREAS);
	sys2(NR_munmap, HUGE_START, HUGE_BYTES * HUGE_PLACES);
}
