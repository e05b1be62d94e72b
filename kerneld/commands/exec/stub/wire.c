/* Requests to kerneld over a thread's own connection: docs/abi.md. Behind the replies of a native thread comes one
 * tlb_record: what is to be dropped from the TLB and what may be put into it. */
#include "native.h"

struct iovec { const void *base; u64 length; };
struct msghdr { void *name; u32 namelen, pad; struct iovec *iov; u64 iovlen; void *control; u64 controllen; int flags, pad2; };
struct cmsg { u64 length; int level, type; int fd[MOST_FDS]; };
struct sockaddr_un { uint16_t family; char path[108]; };

#define SCM_SPACE(count) (16 + (((count) * 4 + 7) & ~7))
#define MSG_DONTWAIT 0x40
#define MSG_NOSIGNAL 0x4000
#define MSG_CMSG_CLOEXEC 0x40000000

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
	descriptors_widen();
	struct answer answer = ask(t, KD_CONNECT, none, 0, 0, -1);
	descriptors_narrow();
	return answer.ret < 0 ? answer.ret : hide_fd(answer.fd[0]);
}

static void send_all(struct thread *t, struct iovec *iov, int pieces, const int *fds, int count)
{
	struct cmsg control = {.length = 16 + count * 4, .level = 1, .type = 1};
	struct msghdr message = {.iov = iov, .iovlen = pieces};
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
		send_all(t, iov, pieces, fds, 0);
	else if (sent <= 0)
		gone();
}

static long receive(struct thread *t, char *buffer, u64 room, int *fds)
{
	struct iovec iov = {buffer, room};
	struct cmsg control = {.length = 0};
	struct msghdr message = {.iov = &iov, .iovlen = 1, .control = &control, .controllen = SCM_SPACE(MOST_FDS)};
	/* Where kerneld is awake, the answer is here before this thread would be asleep. */
	u64 until = ring_is_watched(t) ? __builtin_ia32_rdtsc() + LONGEST_CYCLES : 0;
	long got;
	if (t->is_killable)
		await_answer(t, -1);
	do {
		int is_polling = until && __builtin_ia32_rdtsc() < until;
		got = sys3(NR_recvmsg, t->conn, &message, MSG_CMSG_CLOEXEC | (is_polling ? MSG_DONTWAIT : 0));
	} while (got == -EINTR || got == -EAGAIN);
	int count = message.controllen >= 20 && control.length >= 20 ? (control.length - 16) / 4 : 0;
	for (int i = 0; i < MOST_FDS; i++)
		fds[i] = i < count ? control.fd[i] : -1;
	return got;
}

/* Take up the replies of an answer, up to one with a signal, and what is behind them: the record for the TLB. Returns how
 * many there are. */
static int take_answers(struct thread *t, const char *buffer, long got, int count, struct answer *answers)
{
	int taken = 0;
	do {
		const struct reply *reply = (const struct reply *)buffer;
		struct answer *answer = &answers[taken++];
		if (got < (long)sizeof *reply || reply->size > got || reply->size < sizeof *reply)
			gone();
		answer->ret = reply->ret;
		answer->signo = reply->signo;
		answer->data = buffer + sizeof *reply;
		answer->length = reply->size - sizeof *reply;
		if (answer->signo)
			memcpy(&answer->info, answer->data, sizeof answer->info);
		buffer += reply->size;
		got -= reply->size;
	} while (taken < count && !answers[taken - 1].signo);
	if (got >= (long)sizeof(struct tlb_record))
		tlb_apply(t, (const struct tlb_record *)buffer);
	return taken;
}

struct answer ask_two(struct thread *t, u32 nr, const u64 *args, const void *data, u64 length, const int *fds, int count)
{
	/* A fault may come while the answer to another request is being read, and the word of vfork's child while another
	 * request is ready in the buffer: they have a buffer of their own. */
	char small[2048];
	int is_between = nr == KD_FAULT || nr == KD_WRPKRU || nr == KD_CLONE;
	char *buffer = is_between ? small : t->buffer;
	u64 room = is_between ? sizeof small : BUFFER_BYTES;
	struct answer answer = {.fd = {-1, -1, -1, -1}};
	struct request head = {.size = sizeof head + length, .nr = nr};
	memcpy(head.args, args, sizeof head.args);
	long got = count ? 0 : ring_ask(t, &head, data, length, buffer, room);
	if (!got) {
		struct iovec iov[2] = {{&head, sizeof head}, {data, length}};
		send_all(t, iov, length ? 2 : 1, fds, count);
		got = receive(t, buffer, room, answer.fd);
	}
	take_answers(t, buffer, got, 1, &answer);
	return answer;
}

/* Make the request of a fault that may wait, by the socket, and wait for its answer. If the descriptor `signals` tells of a
 * signal, a bell ends the wait: kerneld answers both. */
struct answer ask_for_page(struct thread *t, const u64 *args, int signals)
{
	char buffer[2048], reply[64];
	int none[MOST_FDS];
	struct answer answer = {.fd = {-1, -1, -1, -1}};
	struct request head = {.size = sizeof head, .nr = KD_FAULT}, bell = {.size = sizeof bell, .nr = KD_RING_BELL};
	memcpy(head.args, args, sizeof head.args);
	send_all(t, &(struct iovec){&head, sizeof head}, 1, 0, 0);
	int is_answered = await_answer(t, signals);
	if (!is_answered)
		send_all(t, &(struct iovec){&bell, sizeof bell}, 1, 0, 0);
	long got = receive(t, buffer, sizeof buffer, none);
	if (!is_answered)
		receive(t, reply, sizeof reply, none);
	take_answers(t, buffer, got, 1, &answer);
	return answer;
}

/* Make some requests in one datagram; the data, and the descriptors that are sent, are the first one's. All descriptors that
 * come are in the first answer, in the order of the requests. Returns how many have been answered. */
int ask_many(struct thread *t, struct request *requests, int count, const void *data, u64 length, const int *fds, int nr_fds,
	     struct answer *answers)
{
	struct iovec iov[3] = {{requests, sizeof *requests}, {data, length}, {requests + 1, (count - 1) * sizeof *requests}};
	for (int i = 0; i < count; i++)
		requests[i].size = sizeof *requests + (i ? 0 : length);
	descriptors_widen();
	send_all(t, iov, 3, fds, nr_fds);
	long got = receive(t, t->buffer, BUFFER_BYTES, answers[0].fd);
	descriptors_narrow();
	return take_answers(t, t->buffer, got, count, answers);
}

struct answer ask(struct thread *t, u32 nr, const u64 *args, const void *data, u64 length, int fd)
{
	return ask_two(t, nr, args, data, length, &fd, fd >= 0);
}

long ask_ret(struct thread *t, u32 nr, const u64 *args)
{
	return ask(t, nr, args, 0, 0, -1).ret;
}
