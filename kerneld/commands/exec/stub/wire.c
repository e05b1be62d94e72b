/* Requests to kerneld over a thread's own connection: docs/abi.md. Behind the replies of a native thread comes one
 * tlb_record: what is to be dropped from the TLB and what may be put into it. */
#include "native.h"

struct iovec { const void *base; u64 length; };
struct msghdr { void *name; u32 namelen, pad; struct iovec *iov; u64 iovlen; void *control; u64 controllen; int flags, pad2; };
struct cmsg { u64 length; int level, type; int fd[2]; };
struct sockaddr_un { uint16_t family; char path[108]; };

#define SCM_SPACE(count) (16 + (((count) * 4 + 7) & ~7))
#define MSG_NOSIGNAL 0x4000
#define MSG_CMSG_CLOEXEC 0x40000000
#define F_DUPFD_CLOEXEC 1030

/* Move a descriptor to where the program cannot reach it. */
long hide_fd(int fd)
{
	long hidden = sys3(NR_fcntl, fd, F_DUPFD_CLOEXEC, process.hidden_fds);
	if (hidden >= 0)
		sys1(NR_close, fd);
	return hidden;
}

int kerneld_connect(const char *path)
{
	struct sockaddr_un address = {.family = 1};
	u64 length = string_length(path);
	long fd = sys3(NR_socket, 1, 5 | 02000000, 0);
	if (fd < 0)
		return fd;
	memcpy(address.path, path, length);
	long ret = sys3(NR_connect, fd, &address, 2 + length + 1);
	if (ret < 0) {
		sys1(NR_close, fd);
		return ret;
	}
	return hide_fd(fd);
}

/* A further connection. A process that is another user now, or has another root, could not connect by the path. */
int new_connection(struct thread *t)
{
	u64 none[6] = {0};
	struct answer answer = ask(t, KD_CONNECT, none, 0, 0, -1);
	return answer.ret < 0 ? answer.ret : hide_fd(answer.fd[0]);
}

static void send_request(struct thread *t, u32 nr, const u64 *args, const void *data, u64 length, const int *fds, int count)
{
	struct request head = {.size = sizeof head + length, .nr = nr};
	memcpy(head.args, args, sizeof head.args);
	struct iovec iov[2] = {{&head, sizeof head}, {data, length}};
	struct cmsg control = {.length = 16 + count * 4, .level = 1, .type = 1};
	struct msghdr message = {.iov = iov, .iovlen = length ? 2 : 1};
	for (int i = 0; i < count; i++)
		control.fd[i] = fds[i];
	if (count) {
		message.control = &control;
		message.controllen = SCM_SPACE(count);
	}
	long sent;
	do
		sent = sys3(NR_sendmsg, t->conn, &message, MSG_NOSIGNAL);
	while (sent == -EINTR);
	if (sent == -EBADF && count) /* The program's descriptor is none: kerneld says EBADF without one. */
		send_request(t, nr, args, data, length, fds, 0);
	else if (sent != (long)head.size)
		die("kerneld has gone");
}

static long receive(struct thread *t, char *buffer, u64 room, struct answer *answer)
{
	struct iovec iov = {buffer, room};
	struct cmsg control = {.length = 0};
	struct msghdr message = {.iov = &iov, .iovlen = 1, .control = &control, .controllen = SCM_SPACE(2)};
	long got;
	do
		got = sys3(NR_recvmsg, t->conn, &message, MSG_CMSG_CLOEXEC);
	while (got == -EINTR);
	answer->fd[0] = answer->fd[1] = -1;
	if (message.controllen >= 20 && control.length >= 20) {
		answer->fd[0] = control.fd[0];
		if (control.length >= 24)
			answer->fd[1] = control.fd[1];
	}
	return got;
}

struct answer ask_two(struct thread *t, u32 nr, const u64 *args, const void *data, u64 length, const int *fds, int count)
{
	/* A fault may come while the answer to another request is being read: it has a buffer of its own. */
	char small[2048];
	char *buffer = nr == KD_FAULT ? small : t->buffer;
	struct answer answer = {0};
	send_request(t, nr, args, data, length, fds, count);
	long got = receive(t, buffer, nr == KD_FAULT ? sizeof small : BUFFER_BYTES, &answer);
	const struct reply *reply = (const struct reply *)buffer;
	if (got < (long)sizeof *reply || reply->size > got)
		die("kerneld has gone");
	answer.ret = reply->ret;
	answer.signo = reply->signo;
	answer.data = buffer + sizeof *reply;
	answer.length = reply->size - sizeof *reply;
	if (answer.signo)
		memcpy(&answer.info, answer.data, sizeof answer.info);
	if (got >= (long)(reply->size + sizeof(struct tlb_record)))
		tlb_apply(t, (const struct tlb_record *)(buffer + reply->size));
	return answer;
}

struct answer ask(struct thread *t, u32 nr, const u64 *args, const void *data, u64 length, int fd)
{
	return ask_two(t, nr, args, data, length, &fd, fd >= 0);
}

long ask_ret(struct thread *t, u32 nr, const u64 *args)
{
	return ask(t, nr, args, 0, 0, -1).ret;
}
