/* The tracees of this process, and how their memory is reached: the stub's own part of it by the host, at the same addresses
 * as here, for all programs have the same stub. */
#include "trace.h"

#define MOST_TRACEES 1024
#define STATUS_BYTES 4096

static struct tracee tracees[MOST_TRACEES];
static int used;	/* behind this none is in use */

/* The next tracee of a thread, or the first one; 0 for no more. */
struct tracee *next_tracee(struct thread *t, struct tracee *after)
{
	for (struct tracee *one = after ? after + 1 : tracees; one < tracees + __atomic_load_n(&used, __ATOMIC_ACQUIRE); one++)
		if (__atomic_load_n(&one->tid, __ATOMIC_ACQUIRE) > 0 && one->tracer == t->tid)
			return one;
	return 0;
}

struct tracee *find_tracee(struct thread *t, int tid)
{
	struct tracee *one = 0;
	while ((one = next_tracee(t, one)))
		if (one->tid == tid)
			return one;
	return 0;
}

/* A new task is traced as the one that has made it. Source: Linux v6.8 include/linux/ptrace.h:ptrace_init_task(). */
void inherit(struct tracee *child, const struct tracee *parent)
{
	child->options = parent->options;
	child->is_seized = parent->is_seized;
}

/* Note a tracee that is not known; 0 if there are too many. */
struct tracee *new_tracee(struct thread *t, int tid, const struct tracee *parent)
{
	for (int i = 0; i < MOST_TRACEES; i++) {
		int none = 0;
		if (!__atomic_compare_exchange_n(&tracees[i].tid, &none, -1, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
			continue;
		memset((char *)&tracees[i] + sizeof none, 0, sizeof tracees[i] - sizeof none);
		tracees[i].tracer = t->tid;
		if (parent)
			inherit(&tracees[i], parent);
		for (int old = used; old <= i; old = used)
			__atomic_compare_exchange_n(&used, &old, i + 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
		__atomic_store_n(&tracees[i].tid, tid, __ATOMIC_SEQ_CST);
		return &tracees[i];
	}
	return 0;
}

void drop_tracee(struct tracee *tracee)
{
	__atomic_store_n(&tracee->tid, 0, __ATOMIC_SEQ_CST);
}

/* A fork's child traces nobody. */
void forget_tracees(void)
{
	for (int i = 0; i < used; i++)
		tracees[i].tid = 0;
	used = process.is_tracer = 0;
}

long host_ptrace(long request, const struct tracee *tracee, u64 addr, void *data)
{
	return sys4(NR_ptrace, request, tracee->tid, addr, data);
}

/* A word of the tracee's stub. */
u64 peek(const struct tracee *tracee, u64 at)
{
	u64 word = 0;
	host_ptrace(PTRACE_PEEKDATA, tracee, at, &word);
	return word;
}

void poke(const struct tracee *tracee, u64 at, u64 value)
{
	host_ptrace(PTRACE_POKEDATA, tracee, at, (void *)value);
}

/* The struct of a thread that is in its stub or its gate; 0 if that cannot be told. */
u64 area_by_registers(const struct user_regs *regs)
{
	u64 at = zone_of(regs->rip) == IN_GATE ? regs->rip : regs->rsp;
	return zone_of(regs->rip) != IN_PROGRAM && at - AREAS_START < MAX_AREAS * AREA_BYTES ? (at & -AREA_BYTES) + PAGE_BYTES : 0;
}

/* Find the struct of a thread that is anywhere. */
static u64 search_area(const struct tracee *tracee)
{
	for (int word = 0; word < MAX_AREAS / 64; word++) {
		u64 bits = peek(tracee, (u64)&areas_used[word]);
		for (int bit = 0; bit < 64; bit++) {
			u64 at = AREAS_START + (word * 64 + bit) * AREA_BYTES + PAGE_BYTES;
			if (bits >> bit & 1 && (int)peek(tracee, at + __builtin_offsetof(struct thread, tid)) == tracee->tid)
				return at;
		}
	}
	return 0;
}

/* The struct of a stopped tracee's thread, in its own memory; 0 before it has one. */
u64 area_of(struct tracee *tracee)
{
	struct user_regs regs;
	if (!tracee->area && !host_ptrace(PTRACE_GETREGS, tracee, 0, &regs))
		tracee->area = area_by_registers(&regs);
	if (!tracee->area)
		tracee->area = search_area(tracee);
	return tracee->area;
}

/* The process of a thread, as the host tells it; 0 where there is none. */
u64 process_of(int tid)
{
	char text[STATUS_BYTES], path[32];
	memcpy(put_number(path, tid) - 1, "/status", 8);
	return tid > 0 && read_host(path, text, sizeof text) > 0 ? value_of(text, "Tgid:") : 0;
}

/* Whether a process that has ended was an agent; `is_gone` is the answer if somebody has waited for it. */
int is_agent(int pid, int is_gone)
{
	char name[32], path[32];
	memcpy(put_number(path, pid) - 1, "/comm", 6);
	return read_host(path, name, sizeof name) < 0 ? is_gone : starts(name, AGENT_NAME);
}

/* A signal has come while the tracee was where no tracer can see it: it comes again later. */
void defer(struct tracee *tracee, const struct siginfo *info)
{
	struct deferred *free = 0;
	for (int i = 0; i < MOST_DEFERRED; i++) {
		struct deferred *one = &tracee->deferred[i];
		if (one->info.signo == info->signo && info->signo < 32)
			return;
		free = !free && !one->info.signo ? one : free;
	}
	if (free)
		*free = (struct deferred){0, *info};
	else
		sys2(NR_tkill, tracee->tid, info->signo);
}

/* Send the deferred signals again. The host stops the tracee for each before its next instruction. */
void send_deferred(struct tracee *tracee)
{
	for (int i = 0; i < MOST_DEFERRED; i++) {
		struct deferred *one = &tracee->deferred[i];
		if (one->info.signo && !one->is_sent)
			one->is_sent = !sys2(NR_tkill, tracee->tid, one->info.signo);
	}
}

/* A signal has come. If it is one that has been sent again, it says now what it said the first time. */
void take_deferred(struct tracee *tracee, struct siginfo *info)
{
	for (int i = 0; i < MOST_DEFERRED; i++) {
		struct deferred *one = &tracee->deferred[i];
		if (!one->is_sent || one->info.signo != info->signo)
			continue;
		*info = one->info;
		host_ptrace(PTRACE_SETSIGINFO, tracee, 0, info);
		one->info.signo = 0;
		return;
	}
}
