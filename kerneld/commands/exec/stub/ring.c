/* The ring: memory in which a thread's requests go to kerneld without a system call, while kerneld looks there. Else, and
 * for descriptors, there is the socket. See docs/abi.md, "Ring". */
#include "native.h"

#define RINGS_START 0x6a3000000000UL
#define RING_BYTES 0x10000UL
#define ADVANCES_BYTES (19 * PAGE_BYTES)	/* behind the ring: advance.c */
#define RING_ROOM (RING_BYTES + ADVANCES_BYTES)
#define X86_TRAP_GP 13
#define REQUESTS 256
#define ANSWERS 0x8000
#define CHILDREN 192
#define NR_CHILDREN 16
#define MAP_SHARED_FIXED 0x11
#define MADV_DONTFORK 10
#define MSG_NOSIGNAL 0x4000
#define NR_recvfrom 45
#define MOST_SKIPPED 64

enum { REQUEST_NUMBER = 0, REQUEST_BYTES = 1, WATCHED = 8, ANSWER_NUMBER = 16, ANSWER_BYTES = 17, TAKEN_NUMBER = 18 };

/* Map the ring of a thread. A fork's child does not get it: it is its parent's. */
void ring_open(struct thread *t, int fd)
{
	u64 number = ((u64)t - AREAS_START) / AREA_BYTES, at = RINGS_START + number * RING_ROOM;
	if (sys6(NR_mmap, at, RING_ROOM, 3, MAP_SHARED_FIXED, fd, 0) != (long)at)
		return;
	sys3(NR_madvise, at, RING_ROOM, MADV_DONTFORK);
	t->ring_number = t->ring_misses = t->ring_skip = 0;
	t->ring = (u64 *)at;
	t->advances = (struct advances *)(at + RING_BYTES);
}

/* Name the child that is to attach with a token, for those who ask kerneld about it before. */
void ring_name_child(struct thread *t, u64 token, u32 pid)
{
	if (t->ring)
		__atomic_store_n((u32 *)((char *)t->ring + CHILDREN) + token % NR_CHILDREN, pid, __ATOMIC_RELEASE);
}

static u64 word(struct thread *t, int index)
{
	return __atomic_load_n(&t->ring[index], __ATOMIC_ACQUIRE);
}

/* Whether kerneld is awake, and answers soon. */
int ring_is_watched(struct thread *t)
{
	return t->ring && !t->ring_skip && word(t, WATCHED);
}

/* A program may forbid to read the processor's clock (PR_SET_TSC). Then the stub faults where it waits awake. Here it reads a
 * time at which every wait has been long enough. */
int skip_rdtsc(struct ucontext *uc)
{
	static u64 clock;
	const unsigned char *code = (const unsigned char *)uc->mc.rip;
	if (uc->mc.trapno != X86_TRAP_GP || code[0] != 0x0f || code[1] != 0x31)
		return 0;
	clock += 2 * LONGEST_SERVED_CYCLES;
	uc->mc.rax = clock & 0xffffffff;
	uc->mc.rdx = clock >> 32;
	uc->mc.rip += 2;
	return 1;
}

static int is_answered_soon(struct thread *t)
{
	for (u64 start = __builtin_ia32_rdtsc(); word(t, ANSWER_NUMBER) != t->ring_number;) {
		__builtin_ia32_pause();
		u64 waited = __builtin_ia32_rdtsc() - start;
		if (waited > LONGEST_CYCLES && word(t, TAKEN_NUMBER) != t->ring_number) {
			/* kerneld is busy, or has no processor: waiting here helps nobody. */
			t->ring_misses += t->ring_misses < 6;
			t->ring_skip = 1 << t->ring_misses;
			return 0;
		}
		if (waited > LONGEST_SERVED_CYCLES)
			/* The request itself takes long: to sleep costs little beside that. */
			return 0;
	}
	t->ring_misses = 0;
	return 1;
}

static long receive(struct thread *t, char *buffer, u64 room)
{
	long got;
	do
		got = sys6(NR_recvfrom, t->conn, (long)buffer, room, 0, 0, 0);
	while (got == -EINTR);
	return got;
}

/* Sleep until the answer has come: the reply to the bell comes after it. Returns the length of an answer by the socket. */
static long ring_bell(struct thread *t, char *buffer, u64 room)
{
	struct request bell = {.size = sizeof bell, .nr = KD_RING_BELL};
	char reply[64];
	long sent, got;
	do
		sent = sys6(NR_sendto, t->conn, (long)&bell, sizeof bell, MSG_NOSIGNAL, 0, 0);
	while (sent == -EINTR);
	if (t->is_killable)
		await_answer(t, -1);
	got = receive(t, buffer, room);
	if (word(t, ANSWER_NUMBER) != t->ring_number)
		gone();
	if (!word(t, ANSWER_BYTES))
		receive(t, reply, sizeof reply);
	return got;
}

/* Answers with descriptors; and kerneld learns who the process is now from the credentials of a datagram. */
static int is_for_socket(u32 nr)
{
	return nr == KD_NATIVE || nr == KD_CONNECT || nr == NR_shadowpt_open || nr == NR_userfaultfd || nr == KD_CREDS;
}

/* Make a request by the ring; the length of its answer, which is in the buffer then, or 0: it is to go by the socket. */
long ring_ask(struct thread *t, const struct request *head, const void *data, u64 length, char *buffer, u64 room)
{
	long got = 0;
	if (!t->ring || !word(t, WATCHED) || head->size > ANSWERS - REQUESTS || is_for_socket(head->nr))
		return 0;
	if (t->ring_skip) {
		t->ring_skip--;
		return 0;
	}
	char *request = (char *)t->ring + REQUESTS;
	memcpy(request, head, sizeof *head);
	memcpy(request + sizeof *head, data, length);
	t->ring[REQUEST_BYTES] = head->size;
	t->ring_number++;
	__atomic_store_n(&t->ring[REQUEST_NUMBER], t->ring_number, __ATOMIC_SEQ_CST);
	if (!word(t, WATCHED) || !is_answered_soon(t))
		got = ring_bell(t, buffer, room);
	u64 bytes = word(t, ANSWER_BYTES);
	if (!bytes)
		return got ? got : receive(t, buffer, room);
	if (bytes > room)
		die("an answer of kerneld is too long");
	memcpy(buffer, (char *)t->ring + ANSWERS, bytes);
	return bytes;
}
