/* userfaultfd(2): its calls, and the faults of the program for which it has to give the page. The descriptor is the reading
 * end of a pipe of kerneld's: read, poll and epoll are the host's. kerneld finds it by its inode. */
#include "../native.h"

#define NR_ppoll 271
#define NR_signalfd4 289
#define SFD_CLOEXEC 02000000
#define O_CLOEXEC 02000000
#define F_SETFD 2
#define EMFILE 24
#define POLLIN 1
#define SIG_DFL 0
#define UFFD_TYPE 0xaa
#define USERFAULTFD_IOC_NEW 0xaa00
#define MOST_RECORD 64
#define IOC_TYPE(command) ((command) >> 8 & 0xff)
#define IOC_SIZE(command) ((command) >> 16 & 0x3fff)

/* Signals that the program has not blocked: those that the stub is told of, or those that have the host end or stop it. */
static u64 open_signals(const struct thread *t, int caught)
{
	u64 set = 0;
	for (int signo = 1; signo <= 64; signo++)
		if (caught ? is_caught(signo) : actions()[signo].handler == SIG_DFL && !is_caught(signo))
			set |= BIT(signo);
	return set & ~(t->mask | t->masked);
}

/* Wait until kerneld has answered, and return 1; or until the descriptor `signals` tells of a signal, and return 0. Signals
 * that end or stop the process by default do so meanwhile, but for those that dump core: the stub has to prepare that. */
int await_answer(struct thread *t, int signals)
{
	struct { int fd; short events, revents; } fds[2] = {{t->conn, POLLIN, 0}, {signals, POLLIN, 0}};
	u64 blocked = ~open_signals(t, 0);
	long ret;
	do
		ret = sys5(NR_ppoll, fds, signals < 0 ? 1 : 2, 0, &blocked, 8);
	while (ret == -EINTR);
	return ret <= 0 || fds[0].revents;
}

/* A fault's request. If a userfaultfd has to give the page, this waits for it. A signal that the stub is told of ends the
 * wait of the program's own access, which is made again behind the handler; not that of an access for a system call. */
struct answer page_fault(struct thread *t, u64 *args)
{
	struct answer answer = ask(t, KD_FAULT, args, 0, 0, -1);
	int signals = -1;
	if (answer.signo || answer.ret != FAULT_WAITS)
		return answer;
	u64 caught = open_signals(t, 1);
	args[2] |= FAULT_MAY_WAIT;
	if (!(args[2] & FAULT_FOR_KERNEL))
		signals = hide_fd(sys4(NR_signalfd4, -1, &caught, 8, SFD_CLOEXEC));
	answer = ask_for_page(t, args, signals);
	if (signals >= 0)
		sys1(NR_close, signals);
	return answer;
}

/* The new descriptor of an answer, as the program wants it. */
static long take_descriptor(const struct answer *answer, u64 flags)
{
	if (answer->ret < 0)
		return answer->ret;
	if (answer->fd[0] < 0)
		return -EMFILE;
	process.has_userfaultfds = 1;
	if (!(flags & O_CLOEXEC))
		sys3(NR_fcntl, answer->fd[0], F_SETFD, 0);
	return answer->fd[0];
}

/* 1 and the result of an ioctl of a userfaultfd, or of /dev/userfaultfd; 0 for another descriptor, which is the host's. */
static int ioctl_call(struct thread *t, const u64 *args, long *ret)
{
	char record[MOST_RECORD];
	u64 bytes = IOC_SIZE(args[1]);
	if (is_hidden(args[0]) || bytes > MOST_RECORD)
		return 0;
	if (user_copy(record, (void *)args[2], bytes))
		bytes = 0;	/* kerneld says EFAULT, if it is a userfaultfd's */
	t->is_killable = 1;
	struct answer answer = ask(t, NR_ioctl, args, record, bytes, (int)args[0]);
	t->is_killable = 0;
	*ret = answer.ret;
	if (answer.ret == -ENOTTY)
		return 0;
	if (answer.length && user_copy((void *)args[2], answer.data, answer.length))
		*ret = -EFAULT;
	if ((u32)args[1] == USERFAULTFD_IOC_NEW)
		*ret = take_descriptor(&answer, args[2]);
	return 1;
}

int userfault_call(struct thread *t, const u64 *args, long nr, long *ret)
{
	if (nr == NR_userfaultfd) {
		struct answer answer = ask(t, nr, args, 0, 0, -1);
		*ret = take_descriptor(&answer, args[0]);
		return 1;
	}
	return IOC_TYPE(args[1]) == UFFD_TYPE && ioctl_call(t, args, ret);
}
