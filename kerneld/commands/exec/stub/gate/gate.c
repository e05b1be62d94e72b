/* The host's calls: at once, or by the gate, for those in which signals may come. The gate is two instructions of the
 * stub, `syscall` and a jump, that the program runs with its own registers, mask and stack. Where the call works on copies
 * (bounce.c) the jump leads to what is behind: a `hlt`, which comes back to the stub, or, if there is nothing to be copied
 * to the program, instructions that only give it its registers back. */
#include "args.h"
#include "gate.h"

#define NR_recvfrom 45
#define NR_preadv2 327
#define RWF_NOWAIT 8
#define MSG_DONTWAIT 0x40
#define MSG_WAITALL 0x100

#define GATE_REGISTERS 9
#define GATE_END GATE_BYTES

static unsigned char *put_relative(unsigned char *code, const char *opcode, int length, const void *what)
{
	memcpy(code, opcode, length);
	code += length;
	int32_t offset = (long)what - (long)(code + 4);
	memcpy(code, &offset, 4);
	return code + 4;
}

/* Write the gate of a thread, whose struct is behind this page. */
void write_gate(unsigned char *code)
{
	static const char loads[6][4] = {"\x48\x8b\x3d", "\x48\x8b\x35", "\x48\x8b\x15", "\x4c\x8b\x15", "\x4c\x8b\x05", "\x4c\x8b\x0d"};
	const struct thread *t = (const struct thread *)(code + PAGE_BYTES);
	*code++ = 0x0f;
	*code++ = 0x05;
	code = put_relative(code, "\xff\x25", 2, &t->gate_return);
	*code++ = 0xf4;
	for (int i = 0; i < 6; i++)
		code = put_relative(code, loads[i], 3, &t->bounce.args[i]);
	put_relative(code, "\xff\x25", 2, &t->bounce.resume);
}

static void set_arguments(struct ucontext *uc, const u64 *args)
{
	uc->mc.rdi = args[0];
	uc->mc.rsi = args[1];
	uc->mc.rdx = args[2];
	uc->mc.r10 = args[3];
	uc->mc.r8 = args[4];
	uc->mc.r9 = args[5];
}

void pass_copied(struct thread *t, struct ucontext *uc, long nr, const u64 *args, const u64 *copies, int needs_stub)
{
	memcpy(t->bounce.args, args, sizeof t->bounce.args);
	t->bounce.resume = uc->mc.rip;
	t->bounce.began = process.is_tracer ? now() : 0;
	t->bounce.nr = nr;
	t->bounce.is_copied = 1;
	t->gate_return = gate_of(t) + (needs_stub || t->stop_at_exit ? GATE_HLT : GATE_REGISTERS);
	set_arguments(uc, copies);
	uc->mc.rip = gate_of(t);
}

const struct row no_pointers = {0, 1, {{NONE, 0, 0, 0, 0}}};

void pass(struct thread *t, struct ucontext *uc, long nr)
{
	u64 args[6] = {uc->mc.rdi, uc->mc.rsi, uc->mc.rdx, uc->mc.r10, uc->mc.r8, uc->mc.r9};
	if (t->stop_at_exit) {
		bounce_in(t, &no_pointers, args);
		pass_copied(t, uc, nr, args, args, 1);
		return;
	}
	t->bounce.is_copied = 0;
	t->bounce.nr = nr;
	t->gate_return = uc->mc.rip;
	uc->mc.rip = gate_of(t);
}

int is_behind_gate(struct thread *t, const struct ucontext *uc)
{
	return t->bounce.is_copied && uc->mc.rip - gate_of(t) >= GATE_HLT && uc->mc.rip - gate_of(t) < GATE_END;
}

/* A call of the host's that may be given the program's memory: the host asks PKRU, as for the program. */
long user_call(struct thread *t, long nr, const u64 *args)
{
	keys_open(t);
	long ret = sys6(nr, args[0], args[1], args[2], args[3], args[4], args[5]);
	keys_close(t);
	return ret;
}

/* Make a call of the host's that does not wait. */
long direct_call(struct thread *t, long nr, const u64 *args)
{
	struct row own;
	const struct row *row = find_row(nr, args, &own);
	u64 copies[6];
	memcpy(copies, args, sizeof copies);
	bounce_in(t, row, copies);
	return bounce_out(t, user_call(t, nr, copies));
}

/* Make a call if it need not wait: then it need not come back from the gate. A device that is not to wait may give less
 * than it would, and so may a socket with SO_RCVLOWAT. Source: Linux v6.8 drivers/char/mem.c:read_iter_zero(),
 * net/ipv4/tcp.c:tcp_recvmsg_locked(). */
static long try_now(const struct thread *t, long nr, const u64 *args)
{
	struct { u64 base, length; } iovec = {args[1], args[2]};
	if (process.has_low_water)
		return -EAGAIN;
	switch (nr) {
	case NR_read:
		if (!t->reads_stream)
			break;
		return sys6(NR_preadv2, args[0], (long)&iovec, 1, -1, -1, RWF_NOWAIT);
	case NR_recvfrom:
		if (args[3] & MSG_WAITALL)
			break;
		return sys6(nr, args[0], args[1], args[2], args[3] | MSG_DONTWAIT, args[4], args[5]);
	case NR_recvmsg:
		if (args[2] & MSG_WAITALL)
			break;
		return sys3(nr, args[0], args[1], args[2] | MSG_DONTWAIT);
	}
	return -EAGAIN;
}

/* Whether a call that was not to wait has not been made. Another error is the call's, and may be told only once: that a
 * connection was reset. */
static int is_not_made(long ret)
{
	return ret == -EAGAIN || ret == -EOPNOTSUPP || ret == -EINTR || ret == -ENOSYS;
}

/* Make a call of the host's, or have the gate make it. */
void host_call(struct thread *t, struct ucontext *uc, long nr, const u64 *args)
{
	struct row own;
	const struct row *row = find_row(nr, args, &own);
	u64 copies[6];
	if (nr == NR_futex || nr == NR_futex_waitv) {
		futex_call(t, uc, nr, args);
	} else if (nr == NR_vmsplice) {
		vmsplice_call(t, uc, args);
	} else if (waits(t, nr, args, copies)) {
		bounce_in(t, &no_pointers, copies);
		pass_copied(t, uc, nr, args, copies, 1);
	} else if (!row) {
		uc->mc.rax = -ENOSYS;
	} else if (!row->pointers[0].how) {
		pass(t, uc, nr);
	} else if (may_wait(nr)) {
		memcpy(copies, args, sizeof copies);
		bounce_in(t, row, copies);
		long ret = args[1] == copies[1] ? -EAGAIN : try_now(t, nr, copies);
		if (is_not_made(ret))
			pass_copied(t, uc, nr, args, copies, t->bounce.outs || t->bounce.big || opens_file(nr));
		else
			uc->mc.rax = bounce_out(t, ret);
	} else {
		uc->mc.rax = direct_call(t, nr, args);
	}
}

/* The call in the gate has not been made, or has done nothing: the program makes it again. */
static void make_again(struct thread *t, struct ucontext *uc)
{
	if (t->bounce.is_copied) {
		bounce_drop(t);
		set_arguments(uc, t->bounce.args);
		t->gate_return = t->bounce.resume;
		t->bounce.is_copied = 0;
	}
	set_shared_futex(t, 0, 0);
	uc->mc.rax = t->bounce.nr;
	uc->mc.rip = t->gate_return - SYSCALL_BYTES;
}

/* The call in the gate has been made. */
static void finish(struct thread *t, struct ucontext *uc)
{
	const u64 *args = t->bounce.args;
	if (!t->bounce.is_copied) {
		uc->mc.rip = t->gate_return;
		return;
	}
	if ((long)uc->mc.rax == -EFAULT && has_lost_futex(t, uc)) {
		make_again(t, uc);	/* its page had gone in between */
		return;
	}
	long ret = uc->mc.rax;
	if ((t->bounce.nr == NR_wait4 || t->bounce.nr == NR_waitid) && ret >= 0) {
		if (!wait_is_over(t, t->bounce.nr, args, &ret)) {
			make_again(t, uc);	/* what it tells is not for the program */
			return;
		}
		uc->mc.rax = ret;
	}
	set_shared_futex(t, 0, 0);
	uc->mc.rax = bounce_out(t, uc->mc.rax);
	set_arguments(uc, args);
	uc->mc.rip = t->bounce.resume;
	t->bounce.is_copied = 0;
	uc->mc.rax = file_opened(t, args, t->bounce.nr, uc->mc.rax);
}

/* The thread is in the gate, by its `hlt` or by a signal: then it is as if that had come at the program's own
 * instruction, which is to be made again where the host would make it again. */
void leave_gate(struct thread *t, struct ucontext *uc)
{
	u64 gate = gate_of(t);
	if (uc->mc.rip == gate)
		make_again(t, uc);
	else if (uc->mc.rip == gate + SYSCALL_BYTES || is_behind_gate(t, uc))
		finish(t, uc);
}

/* A signal has come that is not for the program to see: a call that it has interrupted is made again. */
void undo_interruption(struct thread *t, struct ucontext *uc)
{
	u64 gate = gate_of(t);
	int is_interrupted = (uc->mc.rip == gate + SYSCALL_BYTES || is_behind_gate(t, uc)) && (long)uc->mc.rax == -EINTR;
	if (uc->mc.rip == gate || (is_interrupted && !go_on_with_rest(t, uc)))
		make_again(t, uc);
}

/* Take a kick of the agent's: 1 where this signal is one. Nothing of it is for the program to see. */
int take_kick(struct thread *t, struct ucontext *uc)
{
	if (!__atomic_exchange_n(&t->is_kicked, 0, __ATOMIC_SEQ_CST))
		return 0;
	undo_interruption(t, uc);
	return 1;
}
