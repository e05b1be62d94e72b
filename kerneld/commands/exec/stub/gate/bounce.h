/* What bounce.c shares with room.c: the copies of a call, and the room for them. */
#pragma once
#include "../native.h"

#define MOST_OUTS 1536
#define BIG_BYTES 0x2000000UL	/* a place of each thread */
#define HUGE_BYTES 0x80000000UL	/* more than Linux reads or writes by one call */

/* What is to be copied to the program after the call, in this order. */
enum out_kind {
	FIXED,		/* all of it */
	LENGTH,		/* as much as the word at `where` says */
	BUDGET,		/* no copy: so much has been read, by the result (units of `length`), and `at` bytes before … */
	BUDGET_AT,	/* … or by the word at `where`, if the result is more than `length` */
	SPREAD,		/* as much of what has been read as there is room for */
};
struct out { u64 user, at, length, where; u32 kind, pad; };

static inline struct out *outs_of(struct thread *t)
{
	return (struct out *)((char *)t + PAGE_BYTES + BUFFER_BYTES);
}

void room_begin(struct thread *t);
void room_release(struct thread *t);
void reserve_room(struct thread *t, u64 need);	/* at once, if there is less */
void fresh_room(struct thread *t, u64 need);	/* of new pages, of up to 32 MiB or more */
u64 take_room(struct thread *t, u64 *length);	/* for as many of the bytes as there is; 0 where there is none */
