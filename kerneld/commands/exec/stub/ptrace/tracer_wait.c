/* A tracer is told of its tracees' stops: by wait4() and waitid(), and by SIGCHLD.
 *
 * The host tells of stops that the tracer must not see. A wait that has brought one is made again. The tracer may wait for
 * something else, or compute: so the stub has a handler for SIGCHLD, and lets those tracees go on. The program's own handler is
 * called only if there is something to see. (A tracer that blocks SIGCHLD, and does not wait, holds its tracees up.) */
#include "../gate/args.h"
#include "trace.h"

#define P_ALL 0
#define P_PID 1
#define CLD_STOPPED 5
#define CLD_TRAPPED 4
#define CLD_CONTINUED 6
#define SI_PID(info) ((int)(info)->fields[0])
#define SI_STATUS(info) ((int)(info)->fields[1])

/* A process is stopped, as a wait has told: is it a tracee? A new one is noted: a child of a tracee, or a child of ours that has
 * asked for it. */
static struct tracee *stopped_tracee(struct thread *t, int tid)
{
	struct siginfo info;
	struct tracee *tracee = find_tracee(t, tid);
	if (tracee)
		return tracee;
	serve_tracees(t);	/* its parent's stop names it */
	tracee = find_tracee(t, tid);
	if (tracee)
		return tracee;
	long ret = sys4(NR_ptrace, PTRACE_GETSIGINFO, tid, 0, &info);
	if (ret && ret != -EINVAL)
		return 0;
	/* A child of ours has asked for it. A thread has been made by another tracee. */
	return new_tracee(t, tid, process_of(tid) == (u64)tid ? 0 : next_tracee(t, 0));
}

/* Whether a tracee has stopped, and how. The stop stays for the program's own wait. */
static int has_stopped(const struct tracee *tracee, struct siginfo *info, long options)
{
	info->fields[0] = 0;
	return !sys5(NR_waitid, P_PID, tracee->tid, info, WSTOPPED | WNOHANG | WALL | options, 0) && SI_PID(info) == tracee->tid;
}

/* Look at the tracees that have stopped. 1 if the tracer is to see one of them.
 *
 * The event of an execve is waited for: no tracer is shown this stop, and where a thread has taken its process's number the
 * host refuses every request until somebody has waited. Source: Linux v6.8 kernel/ptrace.c:looks_like_a_spurious_pid(). */
int serve_tracees(struct thread *t)
{
	int is_seen = 0;
	for (struct tracee *tracee = 0; (tracee = next_tracee(t, tracee));) {
		struct siginfo info;
		if (tracee->kind != RUNS || !has_stopped(tracee, &info, WNOWAIT))
			continue;
		if (SI_STATUS(&info) >> 8 != EVENT_EXEC || has_stopped(tracee, &info, 0))
			is_seen |= take_stop(t, tracee, SI_STATUS(&info) << 8 | 0x7f);
	}
	return is_seen;
}

/* A wait has come back. 1 if the program is to see that; 0 if it waits again. `status` is as wait4() has it. */
static int settle(struct thread *t, int pid, int *status)
{
	struct tracee *tracee;
	if (!process.is_tracer)
		return 1;
	if ((*status & 0xff) != 0x7f) {
		tracee = *status == 0xffff ? 0 : find_tracee(t, pid);
		if (tracee)
			drop_tracee(tracee);
		return 1;
	}
	tracee = stopped_tracee(t, pid);
	if (!tracee)
		return 1;
	if (!take_stop(t, tracee, *status))
		return 0;
	*status = tracee->status;
	return 1;
}

static long put_wait4(struct thread *t, const u64 *args, long pid)
{
	if (args[1] && user_copy((void *)args[1], &t->wait.status, 4))
		return -EFAULT;
	return args[3] && user_copy((void *)args[3], t->wait.usage, sizeof t->wait.usage) ? -EFAULT : pid;
}

static long put_waitid(struct thread *t, const u64 *args)
{
	if (args[2] && user_copy((void *)args[2], &t->wait.info, sizeof t->wait.info))
		return -EFAULT;
	return args[4] && SI_PID(&t->wait.info) && user_copy((void *)args[4], t->wait.usage, sizeof t->wait.usage) ? -EFAULT : 0;
}

/* A wait has come back from the gate with a result. 1 and what the program gets; 0 if it is made again. */
int wait_is_over(struct thread *t, long nr, const u64 *args, long *ret)
{
	struct siginfo *info = &t->wait.info;
	if (nr == NR_wait4) {
		if (*ret > 0 && !settle(t, *ret, &t->wait.status))
			return 0;
		*ret = *ret > 0 ? put_wait4(t, args, *ret) : *ret;
		return 1;
	}
	if (!*ret && SI_PID(info)) {
		int is_stop = info->code == CLD_STOPPED || info->code == CLD_TRAPPED, keeps = args[3] & WNOWAIT ? 1 : 0;
		int status = is_stop ? SI_STATUS(info) << 8 | 0x7f : info->code == CLD_CONTINUED || keeps ? 0xffff : 0;
		if (!settle(t, SI_PID(info), &status))
			return 0;
		if (is_stop)
			*(int *)&info->fields[1] = status >> 8;
	}
	*ret = *ret ? *ret : put_waitid(t, args);
	return 1;
}

/* The agent is a child of the program that it never made. It is none that a wait finds, but for one that asks for children of
 * every kind: that is asked for only if the program has made some of them. Source: Linux v6.8 kernel/exit.c:eligible_child(). */
static void leave_agent_out(long nr, u64 *args)
{
	u64 *options = nr == NR_wait4 ? &args[2] : &args[3];
	int is_any = nr == NR_wait4 ? (int)args[0] == -1 : args[0] == P_ALL;
	if (is_any && !process.has_odd_children)
		*options &= ~(u64)WALL;
}

/* Whether a call is a wait. The gate makes it, with room for what it tells: a child may ask to be traced meanwhile. */
int waits(struct thread *t, long nr, const u64 *args, u64 *copies)
{
	if (nr != NR_wait4 && nr != NR_waitid)
		return 0;
	memset(&t->wait, 0, sizeof t->wait);
	memcpy(copies, args, 6 * sizeof *args);
	leave_agent_out(nr, copies);
	copies[nr == NR_wait4 ? 1 : 2] = nr == NR_wait4 ? (u64)&t->wait.status : (u64)&t->wait.info;
	copies[nr == NR_wait4 ? 3 : 4] = args[nr == NR_wait4 ? 3 : 4] ? (u64)t->wait.usage : 0;
	return 1;
}

/* SIGCHLD has come to a tracer. Returns whether it is for the program. */
int tracer_child(struct thread *t, const struct siginfo *info)
{
	int is_stop = info->code == CLD_TRAPPED || info->code == CLD_STOPPED, is_seen = serve_tracees(t);
	struct tracee *tracee = is_stop ? find_tracee(t, SI_PID(info)) : 0;
	if (is_stop && actions()[SIGCHLD].flags & SA_NOCLDSTOP)
		return 0;
	return !is_stop || is_seen || !tracee || tracee->kind != RUNS;
}
