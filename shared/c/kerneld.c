/*
 * libkerneld: see kerneld.h. Every function is async-signal-safe: no allocation, no lock, no stdio.
 *
 * Invariant: while a table is open, `entries` is the kernel's memory, read-only; once it is closed, or the connection has
 * ended, it is private memory with the protection that it had before.
 */
#define _GNU_SOURCE
#include "kerneld.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096UL
#define SNAPSHOT_TRIES 100000
#define NR_SHADOWPT_OPEN 462
#define NR_SHADOWPT_CLOSE 463
#define NR_SHADOWPT_START 464
#define NR_SHADOWPT_STOP 465
#define NR_SHADOWPT_PAGE_CONTENTS 466

_Static_assert(sizeof(struct kd_request) == 56 && sizeof(struct kd_reply) == 16, "the ABI's records");

/* What <linux/shadowpt.h> calls user_shadow_pt and shadow_pte. */
struct range { uint64_t start, end, entries; };
#define RING_BYTES 65536UL
#define RING_REQUESTS 256UL
#define RING_ANSWERS 32768UL
#define RING_AFTER 16U        /* exchanges by the socket: a short program needs no ring */
#define RING_MOST_SKIPPED 64U
#define RING_LOOKS 1000       /* some 20 to 50 microseconds */
#define START_PKRU 0x55555554U /* as every program begins, and a handler */

/* ---- The caller's own memory, from /proc/self/maps ---- */

struct mapping { uint64_t start, end, dev, ino; int prot, sharing; };
struct maps { int fd; ssize_t length, at; char text[1024]; };

static int next_char(struct maps *maps)
{
	if (maps->at == maps->length) {
		do
			maps->length = read(maps->fd, maps->text, sizeof(maps->text));
		while (maps->length < 0 && errno == EINTR);
		maps->at = 0;
		if (maps->length <= 0) {
			maps->length = 0;
			return -1;
		}
	}
	return (unsigned char)maps->text[maps->at++];
}

/* Read a number up to the first character that is no digit of it; returns that character. */
static int read_number(struct maps *maps, unsigned base, uint64_t *value)
{
	for (*value = 0;;) {
		int c = next_char(maps);
		unsigned digit = c >= '0' && c <= '9' ? (unsigned)(c - '0') : c >= 'a' && c <= 'f' ? (unsigned)(c - 'a' + 10) : 16;
		if (digit >= base)
			return c;
		*value = *value * base + digit;
	}
}

/* Read one line: "start-end rwxp offset major:minor inode name". Returns 0 at the end. */
static int next_mapping(struct maps *maps, struct mapping *mapping)
{
	uint64_t offset, major_number, minor_number;
	int c;

	if (read_number(maps, 16, &mapping->start) != '-')
		return 0;
	read_number(maps, 16, &mapping->end);
	mapping->prot = next_char(maps) == 'r' ? PROT_READ : 0;
	mapping->prot |= next_char(maps) == 'w' ? PROT_WRITE : 0;
	mapping->prot |= next_char(maps) == 'x' ? PROT_EXEC : 0;
	mapping->sharing = next_char(maps) == 's' ? MAP_SHARED : MAP_PRIVATE;
	next_char(maps);
	read_number(maps, 16, &offset);
	read_number(maps, 16, &major_number);
	read_number(maps, 16, &minor_number);
	c = read_number(maps, 10, &mapping->ino);
	mapping->dev = makedev(major_number, minor_number);
	while (c != '\n' && c != -1)
		c = next_char(maps);
	return 1;
}

static int open_maps(struct maps *maps)
{
	maps->at = maps->length = 0;
	maps->fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
	return maps->fd;
}

/* Find how what is mapped at an address may be used; as malloc's memory where that cannot be found out. */
static struct mapping find_mapping(uint64_t address)
{
	struct maps maps;
	struct mapping mapping, found = { .prot = PROT_READ | PROT_WRITE, .sharing = MAP_PRIVATE };

	if (open_maps(&maps) < 0)
		return found;
	while (next_mapping(&maps, &mapping))
		if (mapping.start <= address && address < mapping.end)
			found = mapping;
	close(maps.fd);
	return found;
}

/* Put fresh memory where the table is mapped: the program may have unmapped it, moved it, or mapped something else there. */
static void restore_table(struct kd *kd)
{
	struct kd_table table = kd->table;
	int flags = table.sharing | MAP_ANONYMOUS | MAP_FIXED;
	struct maps maps;
	struct mapping mapping;

	if (table.entries == NULL)
		return;
	memset(&kd->table, 0, sizeof(kd->table));
	munmap((void *)(uintptr_t)table.sequence, PAGE);
	if (open_maps(&maps) < 0) {
		mmap(table.entries, table.table_bytes, table.prot, flags, -1, 0);
		return;
	}
	while (next_mapping(&maps, &mapping))
		if (mapping.ino == table.ino && mapping.dev == table.dev)
			mmap((void *)(uintptr_t)mapping.start, mapping.end - mapping.start, table.prot, flags, -1, 0);
	close(maps.fd);
}

/* ---- The connection ---- */

static int fail(int error)
{
	errno = error;
	return -1;
}

static int set_path(struct kd *kd, const char *path)
{
	const char *directory = getenv("XDG_RUNTIME_DIR"), *name = "/kerneld/kerneld.sock";
	char number[12] = "";
	unsigned at = sizeof(number) - 1;
	uid_t uid = getuid();

	if (path == NULL || *path == '\0')
		path = getenv("KERNELD_SOCKET");
	if (path != NULL && *path != '\0') {
		directory = path;
		name = "";
	} else if (directory == NULL || *directory == '\0') {
		directory = "/tmp/kerneld-";
		name = "/kerneld.sock";
		do
			number[--at] = (char)('0' + uid % 10);
		while (uid /= 10);
		kd->check_owner = 1;
	}
	if (strlen(directory) + strlen(number + at) + strlen(name) >= sizeof(kd->path))
		return fail(ENAMETOOLONG);
	strcpy(kd->path, directory);
	if (number[at] != '\0')
		strcat(kd->path, number + at);
	strcat(kd->path, name);
	return 0;
}

/* In /tmp anybody may have made the directory first: there a daemon is trusted that is this user's, or root's. */
static int is_trusted(int fd)
{
	struct ucred peer;
	socklen_t length = sizeof(peer);

	return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0 && (peer.uid == 0 || peer.uid == geteuid());
}

static int open_connection(struct kd *kd)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0), high;

	if (fd < 0)
		return -1;
	/* Out of the way of programs that count on their next descriptor's number, or close those that they know. */
	high = fcntl(fd, F_DUPFD_CLOEXEC, 900);
	if (high >= 0) {
		close(fd);
		fd = high;
	}
	memcpy(address.sun_path, kd->path, strlen(kd->path));
	while (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		if (errno != EINTR) {
			int error = errno;
			close(fd);
			return fail(error);
		}
	if (kd->check_owner && !is_trusted(fd)) {
		close(fd);
		return fail(EACCES);
	}
	kd->answer = mmap(NULL, KD_MAX_REPLY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (kd->answer == MAP_FAILED) {
		kd->answer = NULL;
		close(fd);
		return fail(ENOMEM);
	}
	kd->fd = fd;
	kd->pid = getpid();
	return 0;
}

int kd_attach(struct kd *kd, const char *path, pid_t tid, uint64_t token, uint64_t flags)
{
	memset(kd, 0, sizeof(*kd));
	kd->fd = -1;
	if (set_path(kd, path) < 0 || open_connection(kd) < 0)
		return -1;
	if (kd_syscall(kd, KD_ATTACH, KD_ABI_VERSION, (uint64_t)tid, token, flags, 0, 0) < 0) {
		int error = errno;
		kd_disconnect(kd);
		return fail(error);
	}
	return 0;
}

int kd_connect(struct kd *kd, const char *path)
{
	return kd_attach(kd, path, 0, 0, 0);
}

void kd_forget(struct kd *kd)
{
	if (kd->fd >= 0)
		close(kd->fd);
	if (kd->answer != NULL)
		munmap(kd->answer, KD_MAX_REPLY);
	/* In a forked child something else may be there. */
	if (kd->ring.words != NULL && kd->pid == getpid())
		munmap((void *)(uintptr_t)kd->ring.words, RING_BYTES);
	memset(&kd->ring, 0, sizeof(kd->ring));
	kd->fd = -1;
	kd->answer = NULL;
	memset(&kd->table, 0, sizeof(kd->table));
}

void kd_disconnect(struct kd *kd)
{
	if (kd->pid == getpid())
		restore_table(kd);
	kd_forget(kd);
}

/* ---- Datagrams ---- */

/* End the real process as the simulated one has ended. */
static void die(int signo)
{
	struct sigaction action = { .sa_handler = SIG_DFL };
	sigset_t set;

	sigaction(signo, &action, NULL);
	sigemptyset(&set);
	sigaddset(&set, signo);
	sigprocmask(SIG_UNBLOCK, &set, NULL);
	kill(getpid(), signo);
	_exit(128 + signo);
}

static ssize_t send_calls(struct kd *kd, struct kd_call *calls, size_t nr, const int *fds, size_t nr_fds)
{
	struct kd_request heads[KD_MAX_BATCH];
	struct iovec pieces[2 * KD_MAX_BATCH];
	union { char bytes[CMSG_SPACE(KD_MAX_FDS * sizeof(int))]; struct cmsghdr align; } control;
	struct msghdr message = { .msg_iov = pieces, .msg_iovlen = 2 * nr };
	size_t total = 0;
	ssize_t sent;

	for (size_t i = 0; i < nr; i++) {
		/* First, so that no sum of lengths can wrap. */
		if (calls[i].in_bytes > KD_MAX_DATAGRAM)
			return fail(EMSGSIZE);
		heads[i].size = (uint32_t)(sizeof(heads[i]) + calls[i].in_bytes);
		heads[i].nr = calls[i].nr;
		memcpy(heads[i].args, calls[i].args, sizeof(heads[i].args));
		pieces[2 * i] = (struct iovec){ &heads[i], sizeof(heads[i]) };
		pieces[2 * i + 1] = (struct iovec){ (void *)(uintptr_t)calls[i].in, calls[i].in_bytes };
		total += heads[i].size;
	}
	if (total > KD_MAX_DATAGRAM)
		return fail(EMSGSIZE);
	if (nr_fds > 0) {
		struct cmsghdr *rights = &control.align;
		memset(&control, 0, sizeof(control));
		rights->cmsg_level = SOL_SOCKET;
		rights->cmsg_type = SCM_RIGHTS;
		rights->cmsg_len = CMSG_LEN(nr_fds * sizeof(int));
		memcpy(CMSG_DATA(rights), fds, nr_fds * sizeof(int));
		message.msg_control = control.bytes;
		message.msg_controllen = CMSG_SPACE(nr_fds * sizeof(int));
	}
	do
		sent = sendmsg(kd->fd, &message, MSG_NOSIGNAL);
	while (sent < 0 && errno == EINTR);
	return sent;
}

static ssize_t recv_again(int fd, void *to, size_t room)
{
	ssize_t length;

	do
		length = recv(fd, to, room, 0);
	while (length < 0 && errno == EINTR);
	return length;
}

/* Returns the answer's length; descriptors beyond `*nr_fds` are closed. */
static ssize_t receive_answer(struct kd *kd, int *fds, size_t *nr_fds)
{
	union { char bytes[CMSG_SPACE(KD_MAX_FDS * sizeof(int))]; struct cmsghdr align; } control;
	struct iovec whole = { kd->answer, KD_MAX_REPLY };
	struct msghdr message;
	size_t room = *nr_fds;
	ssize_t length;

	do {
		message = (struct msghdr){ .msg_iov = &whole, .msg_iovlen = 1, .msg_control = control.bytes,
					   .msg_controllen = sizeof(control.bytes) };
		length = recvmsg(kd->fd, &message, MSG_CMSG_CLOEXEC);
	} while (length < 0 && errno == EINTR);
	*nr_fds = 0;
	if (length <= 0)
		return length;
	for (struct cmsghdr *part = CMSG_FIRSTHDR(&message); part != NULL; part = CMSG_NXTHDR(&message, part)) {
		if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS)
			continue;
		for (size_t i = 0; i < (part->cmsg_len - CMSG_LEN(0)) / sizeof(int); i++) {
			int fd;
			memcpy(&fd, CMSG_DATA(part) + i * sizeof(int), sizeof(fd));
			if (*nr_fds < room)
				fds[(*nr_fds)++] = fd;
			else
				close(fd);
		}
	}
	return length;
}

/* ---- The ring ---- */

enum { REQUEST_NUMBER = 0, REQUEST_BYTES = 1, WATCHED = 8, ANSWER_NUMBER = 16, ANSWER_BYTES = 17 };

/* Ask for a ring. A daemon that has none, or a process that cannot map it, stays with the socket. */
static void open_ring(struct kd *kd)
{
	struct kd_call call = { .nr = KD_RING };
	size_t nr_fds = 1;
	int fd;
	void *ring;

	if (kd_run_fds(kd, &call, 1, NULL, 0, &fd, &nr_fds) < 0 || nr_fds == 0)
		return;
	ring = call.ret == (int64_t)RING_BYTES ? mmap(NULL, RING_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : MAP_FAILED;
	close(fd);
	if (ring == MAP_FAILED)
		return;
	/* A child's requests in it would be taken for ours. */
	madvise(ring, RING_BYTES, MADV_DONTFORK);
	kd->ring.words = ring;
}

static int put_into_ring(struct kd *kd, const struct kd_call *calls, size_t nr)
{
	volatile uint64_t *words = kd->ring.words;
	unsigned char *to = (unsigned char *)(uintptr_t)words + RING_REQUESTS;
	size_t total = 0, room = RING_ANSWERS - RING_REQUESTS;

	if (words == NULL || !words[WATCHED])
		return 0;
	if (kd->ring.skip > 0) {
		kd->ring.skip--;
		return 0;
	}
	for (size_t i = 0; i < nr; i++) {
		struct kd_request head = { 0, calls[i].nr, { 0 } };
		if (calls[i].in_bytes > room || total + sizeof(head) + calls[i].in_bytes > room)
			return 0;
		head.size = (uint32_t)(sizeof(head) + calls[i].in_bytes);
		memcpy(head.args, calls[i].args, sizeof(head.args));
		memcpy(to + total, &head, sizeof(head));
		if (calls[i].in_bytes > 0)
			memcpy(to + total + sizeof(head), calls[i].in, calls[i].in_bytes);
		total += head.size;
	}
	words[REQUEST_BYTES] = total;
	__atomic_store_n(&words[REQUEST_NUMBER], ++kd->ring.number, __ATOMIC_SEQ_CST);
	return 1;
}

/* Ring the bell, whose reply comes after the answer. Returns the length of what came first by the socket. */
static ssize_t ring_bell(struct kd *kd)
{
	struct kd_request bell = { sizeof(bell), KD_RING_BELL, { 0 } };
	struct kd_reply reply;
	ssize_t length;

	do
		length = send(kd->fd, &bell, sizeof(bell), MSG_NOSIGNAL);
	while (length < 0 && errno == EINTR);
	length = length < 0 ? 0 : recv_again(kd->fd, kd->answer, KD_MAX_REPLY);
	if (length > 0 && kd->ring.words[ANSWER_NUMBER] == kd->ring.number && kd->ring.words[ANSWER_BYTES] == 0)
		recv_again(kd->fd, &reply, sizeof(reply));
	return length;
}

/* Take the answer of what is in the ring; returns its length, 0 or less where the connection has ended. */
static ssize_t take_from_ring(struct kd *kd)
{
	volatile uint64_t *words = kd->ring.words;
	ssize_t heard = -1;
	uint64_t length;
	int looks = 0;

	while (words[ANSWER_NUMBER] != kd->ring.number && looks++ < RING_LOOKS)
		__builtin_ia32_pause();
	if (looks <= RING_LOOKS) {
		kd->ring.misses = 0;
	} else {
		kd->ring.misses++;
		kd->ring.skip = kd->ring.misses < 6 ? 1U << kd->ring.misses : RING_MOST_SKIPPED;
		heard = ring_bell(kd);
		if (words[ANSWER_NUMBER] != kd->ring.number)
			return 0;
	}
	length = words[ANSWER_BYTES];
	if (length == 0)
		return heard >= 0 ? heard : recv_again(kd->fd, kd->answer, KD_MAX_REPLY);
	__atomic_thread_fence(__ATOMIC_ACQUIRE);
	if (length > RING_BYTES - RING_ANSWERS)
		return 0;
	memcpy(kd->answer, (unsigned char *)(uintptr_t)words + RING_ANSWERS, length);
	return (ssize_t)length;
}

/* Give each call its reply; returns how many there are, -1 where the answer is none. */
static int take_replies(struct kd *kd, struct kd_call *calls, size_t nr, size_t length)
{
	size_t at = 0, count = 0;

	for (; at < length && count < nr; count++) {
		struct kd_call *call = &calls[count];
		struct kd_reply reply;
		const unsigned char *data = kd->answer + at + sizeof(reply);
		size_t bytes;

		if (length - at < sizeof(reply))
			return -1;
		memcpy(&reply, kd->answer + at, sizeof(reply));
		if (reply.size < sizeof(reply) || reply.size > length - at)
			return -1;
		bytes = reply.size - sizeof(reply);
		call->ret = reply.ret;
		at += reply.size;
		if (reply.signo != 0) {
			struct kd_signal signal = { reply.signo, { 0, 0, 0, 0, START_PKRU } };

			if (bytes != sizeof(signal.info) && bytes != offsetof(struct kd_siginfo, pkey))
				return -1;
			memcpy(&signal.info, data, bytes);
			kd->signal = signal;
			continue;
		}
		call->out_got = bytes < call->out_bytes ? bytes : call->out_bytes;
		if (call->out_got > 0)
			memcpy(call->out, data, call->out_got);
	}
	return at == length ? (int)count : -1;
}

/* A caught signal leaves PKRU as a handler has it: set it again, as sigreturn would. */
static void restore_pkru(struct kd *kd)
{
	struct kd_signal signal = kd->signal;

	if (signal.info.pkru != START_PKRU)
		kd_raw(kd, KD_WRPKRU, signal.info.pkru, 0, 0, 0, 0, 0);
	kd->signal = signal;
}

int kd_run_fds(struct kd *kd, struct kd_call *calls, size_t nr, const int *fds, size_t nr_fds, int *fds_out,
	       size_t *nr_fds_out)
{
	size_t nr_got = nr_fds_out == NULL ? 0 : *nr_fds_out;
	ssize_t length;
	int count;

	if (nr == 0 || nr > KD_MAX_BATCH || nr_fds > KD_MAX_FDS)
		return fail(EINVAL);
	if (kd->fd < 0)
		return fail(ENOTCONN);
	if (kd->pid != getpid())
		return fail(EPERM);
	if (kd->ring.words == NULL && ++kd->ring.exchanges == RING_AFTER)
		open_ring(kd);
	kd->signal.signo = 0;
	for (size_t i = 0; i < nr; i++) {
		calls[i].ret = -ECANCELED;
		calls[i].out_got = 0;
	}
	if (nr_fds == 0 && nr_got == 0 && put_into_ring(kd, calls, nr)) {
		length = take_from_ring(kd);
	} else if (send_calls(kd, calls, nr, fds, nr_fds) < 0) {
		if (errno == EMSGSIZE || errno == EBADF)
			return -1;
		length = 0;
	} else {
		length = receive_answer(kd, fds_out, &nr_got);
	}
	if (nr_fds_out != NULL)
		*nr_fds_out = nr_got;
	count = length <= 0 ? -1 : take_replies(kd, calls, nr, (size_t)length);
	if (count > 0 && kd->signal.signo != 0 && kd->signal.info.fatal)
		die(kd->signal.signo);
	if (count > 0 && kd->signal.signo != 0)
		restore_pkru(kd);
	if (count > 0)
		return count;
	for (size_t i = 0; i < nr_got; i++)
		close(fds_out[i]);
	kd_disconnect(kd);
	return fail(length <= 0 ? ECONNRESET : EPROTO);
}

/* ---- Calls ---- */

int kd_run(struct kd *kd, struct kd_call *calls, size_t nr)
{
	return kd_run_fds(kd, calls, nr, NULL, 0, NULL, NULL);
}

/* Run one call; returns Linux's value or -1 with errno. */
static long run_one(struct kd *kd, struct kd_call *call)
{
	if (kd_run(kd, call, 1) < 0)
		return -1;
	if (call->ret < 0 && call->ret >= -4095)
		return fail((int)-call->ret);
	return (long)call->ret;
}

long kd_syscall(struct kd *kd, uint32_t nr, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f)
{
	struct kd_call call = { .nr = nr, .args = { a, b, c, d, e, f } };

	return run_one(kd, &call);
}

long kd_raw(struct kd *kd, uint32_t nr, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f)
{
	struct kd_call call = { .nr = nr, .args = { a, b, c, d, e, f } };

	return kd_run(kd, &call, 1) < 0 ? -errno : (long)call.ret;
}

/* Move `length` bytes in as many calls as it takes, up to where a signal or an error stops it. */
static ssize_t move(struct kd *kd, uint32_t nr, uint64_t vaddr, void *out, const void *in, size_t length)
{
	size_t done = 0;

	while (done < length) {
		size_t bytes = length - done < KD_MAX_INLINE ? length - done : KD_MAX_INLINE;
		struct kd_call call = { .nr = nr, .args = { vaddr + done, bytes } };
		long ret;

		if (in != NULL) {
			call.in = (const char *)in + done;
			call.in_bytes = bytes;
		} else {
			call.out = (char *)out + done;
			call.out_bytes = bytes;
		}
		ret = run_one(kd, &call);
		if (ret > 0 && in == NULL && kd->signal.signo != 0) {
			/* A load that a signal stops brings a siginfo in place of the bytes before it. */
			struct kd_signal signal = kd->signal;
			call.args[1] = (uint64_t)ret;
			ret = run_one(kd, &call);
			kd->signal = signal;
		}
		if (ret < 0)
			return done > 0 ? (ssize_t)done : -1;
		done += (size_t)ret;
		if (kd->signal.signo != 0)
			return done > 0 ? (ssize_t)done : fail(EFAULT);
	}
	return (ssize_t)done;
}

ssize_t kd_load(struct kd *kd, uint64_t vaddr, void *to, size_t length)
{
	return move(kd, KD_LOAD, vaddr, to, NULL, length);
}

ssize_t kd_store(struct kd *kd, uint64_t vaddr, const void *from, size_t length)
{
	return move(kd, KD_STORE, vaddr, NULL, from, length);
}

ssize_t kd_touch(struct kd *kd, uint64_t vaddr, size_t length, enum kd_access access)
{
	long ret = kd_syscall(kd, KD_TOUCH, vaddr, length, access, 0, 0, 0);

	return ret == 0 && kd->signal.signo != 0 ? fail(EFAULT) : ret;
}

ssize_t kd_procread(struct kd *kd, const char *path, uint64_t offset, void *to, size_t length)
{
	struct kd_call call = { .nr = KD_PROCREAD, .args = { offset, length < KD_MAX_INLINE ? length : KD_MAX_INLINE },
				.in = path, .in_bytes = strlen(path), .out = to, .out_bytes = length };

	return run_one(kd, &call);
}

uint64_t kd_mmap(struct kd *kd, uint64_t addr, size_t length, int prot, int flags, int fd, off_t offset)
{
	struct kd_call call = { .nr = SYS_mmap, .args = { addr, length, (uint64_t)prot, (uint64_t)flags,
							  (uint64_t)(int64_t)fd, (uint64_t)offset } };
	size_t nr_fds = flags & MAP_ANONYMOUS ? 0 : 1;

	if (kd_run_fds(kd, &call, 1, &fd, nr_fds, NULL, NULL) < 0)
		return UINT64_MAX;
	if (call.ret >= 0 || call.ret < -4095)
		return (uint64_t)call.ret;
	errno = (int)-call.ret;
	return UINT64_MAX;
}

int kd_munmap(struct kd *kd, uint64_t addr, size_t length)
{
	return (int)kd_syscall(kd, SYS_munmap, addr, length, 0, 0, 0, 0);
}

int kd_mprotect(struct kd *kd, uint64_t addr, size_t length, int prot)
{
	return (int)kd_syscall(kd, SYS_mprotect, addr, length, (uint64_t)prot, 0, 0, 0);
}

int kd_pkey_alloc(struct kd *kd, unsigned long flags, unsigned long rights)
{
	return (int)kd_syscall(kd, SYS_pkey_alloc, flags, rights, 0, 0, 0, 0);
}

int kd_pkey_free(struct kd *kd, int pkey)
{
	return (int)kd_syscall(kd, SYS_pkey_free, (uint32_t)pkey, 0, 0, 0, 0, 0);
}

int kd_pkey_mprotect(struct kd *kd, uint64_t addr, size_t length, int prot, int pkey)
{
	return (int)kd_syscall(kd, SYS_pkey_mprotect, addr, length, (uint64_t)prot, (uint32_t)pkey, 0, 0);
}

long kd_rdpkru(struct kd *kd)
{
	return kd_syscall(kd, KD_RDPKRU, 0, 0, 0, 0, 0, 0);
}

int kd_wrpkru(struct kd *kd, uint32_t pkru)
{
	return (int)kd_syscall(kd, KD_WRPKRU, pkru, 0, 0, 0, 0, 0);
}

int kd_pkey_get(struct kd *kd, int pkey)
{
	long pkru = pkey < 0 || pkey > 15 ? fail(EINVAL) : kd_rdpkru(kd);

	return pkru < 0 ? -1 : (int)(pkru >> 2 * pkey & 3);
}

int kd_pkey_set(struct kd *kd, int pkey, unsigned rights)
{
	long pkru = pkey < 0 || pkey > 15 || rights > 3 ? fail(EINVAL) : kd_rdpkru(kd);

	return pkru < 0 ? -1 : kd_wrpkru(kd, ((uint32_t)pkru & ~(3U << 2 * pkey)) | rights << 2 * pkey);
}

uint64_t kd_brk(struct kd *kd, uint64_t addr)
{
	return (uint64_t)kd_syscall(kd, SYS_brk, addr, 0, 0, 0, 0, 0);
}

/* In the child: a connection of its own. Tells the parent by closing the pipe, or with an errno where it fails. */
static void become_child(struct kd *kd, uint64_t token, int pipe_fd)
{
	char path[sizeof(kd->path)];
	int error = 0;

	strcpy(path, kd->path);
	kd_forget(kd);
	if (kd_attach(kd, path, 0, token, 0) < 0)
		error = errno;
	if (error != 0) {
		ssize_t sent = write(pipe_fd, &error, sizeof(error));
		_exit(sent == sizeof(error) ? 127 : 126);
	}
	close(pipe_fd);
}

pid_t kd_fork(struct kd *kd)
{
	long token = kd_syscall(kd, KD_CLONE, 0, 0, 0, 0, 0, 0);
	int ends[2], error = 0;
	ssize_t got;
	pid_t pid;

	if (token < 0 || pipe2(ends, O_CLOEXEC) < 0)
		return -1;
	pid = fork();
	if (pid == 0) {
		close(ends[0]);
		become_child(kd, (uint64_t)token, ends[1]);
		return 0;
	}
	if (pid < 0)
		error = errno;
	close(ends[1]);
	if (pid > 0) {
		/* Until the child has attached, or is dead: then its pid is there to be waited for. */
		do
			got = read(ends[0], &error, sizeof(error));
		while (got < 0 && errno == EINTR);
		if (got != sizeof(error))
			error = 0;
		else
			waitpid(pid, NULL, 0);
	}
	close(ends[0]);
	return error == 0 ? pid : fail(error);
}

void kd_exit(struct kd *kd, int status)
{
	kd_syscall(kd, SYS_exit_group, (uint64_t)status, 0, 0, 0, 0, 0);
	fflush(NULL);
	_exit(status & 0xff);
}

/* ---- The shadow page table ---- */

/* Map the table over `entries`, all pages at once, and its sequence page: what remap_pfn_range() does inside a kernel.
 * As many pages as the kernel has, whatever the range says: more would lie over other memory of the program. */
static int map_table(struct kd *kd, const struct range *range, const struct mapping *before, const int *fds)
{
	int flags = MAP_SHARED | MAP_FIXED | MAP_POPULATE;
	struct stat status;
	void *sequence, *entries;
	size_t bytes;

	if (fstat(fds[0], &status) < 0)
		return -1;
	bytes = (size_t)status.st_size;
	sequence = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fds[1], 0);
	if (sequence == MAP_FAILED)
		return -1;
	entries = mmap((void *)(uintptr_t)range->entries, bytes, PROT_READ, flags, fds[0], 0);
	if (entries == MAP_FAILED) {
		int error = errno;
		munmap(sequence, PAGE);
		return fail(error);
	}
	kd->table = (struct kd_table){ entries, bytes, sequence, before->prot, before->sharing, status.st_dev, status.st_ino };
	if (before->prot == PROT_NONE)
		mprotect(entries, bytes, PROT_NONE);
	return 0;
}

int kd_shadowpt_open(struct kd *kd, pid_t target, struct user_shadow_pt *dest, enum kd_layout layout, uint64_t flags)
{
	struct range range;
	struct kd_call call = { .nr = NR_SHADOWPT_OPEN, .out = &range, .out_bytes = sizeof(range) };
	struct mapping before = { .prot = PROT_NONE };
	int fds[2], mapped, error;
	size_t nr_fds = 2;

	call.args[0] = (uint64_t)(int64_t)target;
	call.args[1] = (uintptr_t)dest;
	call.args[2] = (uint64_t)layout;
	call.args[3] = flags;
	if (dest != NULL) {
		memcpy(&range, dest, sizeof(range));
		call.in = &range;
		call.in_bytes = sizeof(range);
		before = find_mapping(range.entries);
	}
	if (kd_run_fds(kd, &call, 1, NULL, 0, fds, &nr_fds) < 0)
		return -1;
	if (call.ret < 0)
		return fail((int)-call.ret);
	mapped = nr_fds == 2 && call.out_got == sizeof(range) ?
			 map_table(kd, &range, &before, fds) :
			 fail(EPROTO);
	error = errno;
	for (size_t i = 0; i < nr_fds; i++)
		close(fds[i]);
	if (mapped < 0) {
		kd_shadowpt_close(kd);
		return fail(error);
	}
	memcpy((void *)dest, &range, sizeof(range));
	return 0;
}

int kd_faults_open(struct kd *kd, pid_t target, void *dest, size_t size, uint64_t flags)
{
	struct range range = { 0, size, (uintptr_t)dest };

	return kd_shadowpt_open(kd, target, (void *)&range, KD_LAYOUT_F25_PART1, flags);
}

int kd_shadowpt_close(struct kd *kd)
{
	int ret = (int)kd_syscall(kd, NR_SHADOWPT_CLOSE, 0, 0, 0, 0, 0, 0);

	if (ret == 0)
		restore_table(kd);
	return ret;
}

int kd_shadowpt_start(struct kd *kd)
{
	return (int)kd_syscall(kd, NR_SHADOWPT_START, 0, 0, 0, 0, 0, 0);
}

int kd_shadowpt_stop(struct kd *kd)
{
	return (int)kd_syscall(kd, NR_SHADOWPT_STOP, 0, 0, 0, 0, 0, 0);
}

int kd_shadowpt_page_contents(struct kd *kd, uint64_t pfn, void *page)
{
	struct kd_call call = { .nr = NR_SHADOWPT_PAGE_CONTENTS, .args = { pfn, (uintptr_t)page }, .out = page,
				.out_bytes = PAGE };

	return (int)run_one(kd, &call);
}

int kd_snapshot(struct kd *kd, void *entries, size_t bytes)
{
	const struct kd_table *table = &kd->table;

	if (table->entries == NULL || bytes > table->table_bytes)
		return fail(EINVAL);
	if (table->prot == PROT_NONE)
		return fail(EFAULT);
	for (int i = 0; i < SNAPSHOT_TRIES; i++) {
		uint64_t before = *table->sequence;
		if (before % 2 == 0) {
			__atomic_thread_fence(__ATOMIC_ACQUIRE);
			memcpy(entries, table->entries, bytes);
			__atomic_thread_fence(__ATOMIC_ACQUIRE);
			if (*table->sequence == before)
				return 0;
		}
		sched_yield();
	}
	return fail(EAGAIN);
}
