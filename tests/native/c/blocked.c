/* Calls that wait while the pages of their buffers are swapped out, and made read-only by a fork. Each case is a thread
 * that makes the call; when it waits, the main thread takes the pages away, and only then lets the call go on. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <linux/futex.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define P 4096
#define PAGES 64

static char *pages;		/* where all buffers are */
static int ends[2], pair[2];
static pthread_t thread;
static volatile pid_t tid, child;
static int *word;

/* Place things apart, on pages of their own. */
static void *place(int number) { return pages + number * 4 * P + P - 5; }
static void *aligned(int number) { return pages + number * 4 * P; }

static void result(const char *name, long ret) { printf("%s: %ld, %s", name, ret, ret < 0 ? strerrorname_np(errno) : "fine"); }

static void do_read(void)
{
	result("read", read(ends[0], place(0), 3 * P));
	printf(" %.10s\n", (char *)place(0));
}

static void do_readv(void)
{
	struct iovec *iovec = place(1);
	iovec[0] = (struct iovec){place(2), 3};
	iovec[1] = (struct iovec){0, 0};
	iovec[2] = (struct iovec){place(3), 100};
	result("readv", readv(ends[0], iovec, 3));
	printf(" %.3s %.7s\n", (char *)place(2), (char *)place(3));
}

static void do_recvfrom(void)
{
	socklen_t *length = aligned(1);
	struct sockaddr_un *from = place(2);
	*length = sizeof *from;
	result("recvfrom", recvfrom(pair[0], place(0), 5, MSG_TRUNC, (void *)from, length));
	printf(" %.5s, name %u\n", (char *)place(0), *length);
}

static void do_recvmsg(void)
{
	struct msghdr *message = aligned(0);
	struct iovec *iovec = place(1);
	struct cmsghdr *control = aligned(2);
	iovec[0] = (struct iovec){place(3), 4};
	iovec[1] = (struct iovec){place(4), 100};
	*message = (struct msghdr){.msg_iov = iovec, .msg_iovlen = 2, .msg_control = control, .msg_controllen = 200};
	result("recvmsg", recvmsg(pair[0], message, 0));
	int fd = *(int *)CMSG_DATA(control);
	printf(" %.4s %.6s, control %zu type %d, works %d\n", (char *)place(3), (char *)place(4), message->msg_controllen,
	       control->cmsg_type, fcntl(fd, F_GETFD) >= 0);
	close(fd);
}

static void do_recvmmsg(void)
{
	struct mmsghdr *messages = aligned(0);
	struct iovec *iovec = place(1);
	for (int i = 0; i < 2; i++) {
		iovec[i] = (struct iovec){place(2 + i), 50};
		messages[i] = (struct mmsghdr){.msg_hdr = {.msg_iov = iovec + i, .msg_iovlen = 1}};
	}
	result("recvmmsg", recvmmsg(pair[0], messages, 2, MSG_WAITFORONE, 0));
	printf(" %u %.11s\n", messages[0].msg_len, (char *)place(2));
}

static void do_poll(void)
{
	struct pollfd *fds = place(0);
	fds[0] = (struct pollfd){ends[0], POLLIN, 0};
	fds[1] = (struct pollfd){pair[0], POLLOUT * 0, 0};
	result("poll", poll(fds, 2, -1));
	printf(" %x %x\n", fds[0].revents, fds[1].revents);
}

static void do_select(void)
{
	fd_set *set = aligned(0);
	struct timeval *limit = place(1);
	*limit = (struct timeval){1000, 0};
	FD_ZERO(set);
	FD_SET(ends[0], set);
	result("select", syscall(SYS_select, ends[0] + 1, set, 0, 0, limit));
	printf(" %d, some time is gone: %d\n", FD_ISSET(ends[0], set), limit->tv_sec < 1000);
}

static void do_pselect(void)
{
	fd_set *set = aligned(0);
	struct timespec *limit = place(1);
	sigset_t *mask = place(2);
	*limit = (struct timespec){1000, 0};
	sigemptyset(mask);
	FD_ZERO(set);
	FD_SET(ends[0], set);
	result("pselect", pselect(ends[0] + 1, set, 0, 0, limit, mask));
	printf(" %d\n", FD_ISSET(ends[0], set));
}

static void do_epoll(void)
{
	struct epoll_event *events = place(0), one = {.events = EPOLLIN | EPOLLONESHOT, .data.u64 = 77};
	int epoll = epoll_create1(0);
	epoll_ctl(epoll, EPOLL_CTL_ADD, ends[0], &one);
	result("epoll_wait", epoll_wait(epoll, events, 300, -1));
	printf(" %x %lu\n", events[0].events, (unsigned long)events[0].data.u64);
	close(epoll);
}

static void do_sigtimedwait(void)
{
	sigset_t *set = place(0);
	siginfo_t *info = place(1);
	struct timespec *limit = place(2);
	*limit = (struct timespec){1000, 0};
	sigemptyset(set);
	sigaddset(set, SIGUSR2);
	result("sigtimedwait", sigtimedwait(set, info, limit));
	printf(" %d\n", info->si_code);
}

static void do_wait4(void)
{
	int *status = place(0);
	struct rusage *usage = place(1);
	usage->ru_maxrss = -1;
	int is_child = wait4(child, status, 0, usage) == child;
	printf("wait4: %d, status %x, usage %d\n", is_child, *status, usage->ru_maxrss > 0);
}

static void do_waitid(void)
{
	siginfo_t *info = place(0);
	result("waitid", waitid(P_PID, child, info, WEXITED));
	printf(" %d %d\n", info->si_pid == child, info->si_status);
}

static void do_futex_private(void) { result("private futex", syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, 0, 0, 0, 0)); printf("\n"); }

/* May be woken too often. */
static void do_futex_shared(void)
{
	while (!__atomic_load_n(word, __ATOMIC_SEQ_CST))
		syscall(SYS_futex, word, FUTEX_WAIT, 0, 0, 0, 0);
	printf("shared futex: %d\n", *word);
}

static void do_nanosleep(void)
{
	struct timespec *wanted = place(0), *left = place(1);
	*wanted = (struct timespec){1000, 0};
	result("nanosleep", nanosleep(wanted, left));
	printf(" %d\n", left->tv_sec > 900);
}

static void do_write(void)
{
	for (int i = 0; i < 40 * P; i++)
		pages[i] = i * 7 / 3;
	result("write", write(ends[1], pages + 1, 40 * P));
	printf("\n");
}

static void do_restarted(void)
{
	result("interrupted read", read(ends[0], place(0), 100));
	printf(" %.5s\n", (char *)place(0));
}

static void do_accept(void)
{
	socklen_t *length = place(0);
	struct sockaddr_un *from = place(1);
	struct sockaddr_un own = {.sun_family = AF_UNIX};
	int server = socket(AF_UNIX, SOCK_STREAM, 0);
	bind(server, (void *)&own, sizeof own.sun_family);
	listen(server, 1);
	pair[1] = server;
	*length = sizeof *from;
	int fd = accept(server, (void *)from, length);
	printf("accept: %d, name %u family %d\n", fd >= 0, *length, from->sun_family);
	close(fd);
	close(server);
}


static void count(int signo) { (void)signo; }

/* Wait until the thread is in the call. */
static void wait_for(int nr)
{
	char name[64], text[64];
	do {
		while (!tid)
			;
		snprintf(name, sizeof name, "/proc/%d/task/%d/syscall", getpid(), tid);
		int fd = open(name, O_RDONLY);
		ssize_t got = read(fd, text, sizeof text - 1);
		close(fd);
		text[got < 0 ? 0 : got] = 0;
	} while (strtol(text, 0, 10) != nr || text[0] == 'r');
}

static void take_away(void)
{
	int status;
	pid_t forked = fork();
	if (!forked)
		_exit(0);
	waitpid(forked, &status, 0);
	madvise(pages, PAGES * P, MADV_PAGEOUT);
}

static void *run(void *function)
{
	tid = syscall(SYS_gettid);
	((void (*)(void))function)();
	return place(9);
}

static void begin(void (*function)(void), int nr)
{
	fflush(stdout);
	tid = 0;
	memset(pages, '.', PAGES * P);
	*word = 0;
	pthread_create(&thread, 0, (void *(*)(void *))run, (void *)function);
	wait_for(nr);
	take_away();
}

static void end(void)
{
	pthread_join(thread, 0);
	fflush(stdout);
}

static void into_pipe(const char *text) { write(ends[1], text, strlen(text)); end(); }

static pid_t waiting_child(void)
{
	pid_t pid = fork();
	char byte;
	if (!pid) {
		close(ends[1]);
		read(ends[0], &byte, 1);
		_exit(5);
	}
	return pid;
}

static void send_control(void)
{
	char control[CMSG_SPACE(sizeof(int))] = {0};
	struct iovec iovec = {"in two parts", 10};
	struct msghdr message = {.msg_iov = &iovec, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
	*CMSG_FIRSTHDR(&message) = (struct cmsghdr){CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS};
	*(int *)CMSG_DATA(CMSG_FIRSTHDR(&message)) = ends[0];
	sendmsg(pair[1], &message, 0);
	end();
}

static void pipes_and_sockets(void)
{
	begin(do_read, SYS_read), into_pipe("from the pipe");
	begin(do_readv, SYS_readv), into_pipe("in parts..");
	begin(do_recvfrom, SYS_recvfrom), send(pair[1], "a datagram", 10, 0), end();
	begin(do_recvmsg, SYS_recvmsg), send_control();
	begin(do_recvmmsg, SYS_recvmmsg), send(pair[1], "one of many", 11, 0), end();
	char *all = malloc(40 * P);
	begin(do_write, SYS_write);
	int got = 0, bad = 0;
	while (got < 40 * P)
		got += read(ends[0], all + got, 40 * P - got);
	for (int i = 0; i < 40 * P; i++)
		bad += all[i] != (char)((i + 1) * 7 / 3) && i < 40 * P - 1;
	end();
	printf("of %d bytes %d are wrong\n", got, bad);
}

static void waits(void)
{
	char byte[100];
	begin(do_poll, SYS_poll), into_pipe("x"), read(ends[0], byte, 100);
	begin(do_select, SYS_select), into_pipe("x"), read(ends[0], byte, 100);
	begin(do_pselect, SYS_pselect6), into_pipe("x"), read(ends[0], byte, 100);
	begin(do_epoll, SYS_epoll_wait), into_pipe("x"), read(ends[0], byte, 100);
	begin(do_sigtimedwait, SYS_rt_sigtimedwait), pthread_kill(thread, SIGUSR2), end();
	child = waiting_child();
	begin(do_wait4, SYS_wait4), into_pipe("x");
	child = waiting_child();
	begin(do_waitid, SYS_waitid), into_pipe("x");
}

static void others(void)
{
	struct sigaction action = {.sa_handler = count};
	sigaction(SIGUSR1, &action, 0);
	begin(do_futex_private, SYS_futex), *word = 1, syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, 0, 0, 0), end();
	begin(do_futex_shared, SYS_futex), *word = 1, syscall(SYS_futex, word, FUTEX_WAKE, 1, 0, 0, 0), end();
	begin(do_nanosleep, SYS_clock_nanosleep), pthread_kill(thread, SIGUSR1), end();
	begin(do_restarted, SYS_read), pthread_kill(thread, SIGUSR1), end();
	action.sa_flags = SA_RESTART;
	sigaction(SIGUSR1, &action, 0);
	begin(do_restarted, SYS_read), pthread_kill(thread, SIGUSR1), into_pipe("again");
	begin(do_accept, SYS_accept);
	struct sockaddr_un there;
	socklen_t length = sizeof there;
	int client = socket(AF_UNIX, SOCK_STREAM, 0);
	getsockname(pair[1], (void *)&there, &length);
	connect(client, (void *)&there, length);
	end();
	close(client);
}

int main(void)
{
	sigset_t usr2;
	sigemptyset(&usr2);
	sigaddset(&usr2, SIGUSR2);
	sigprocmask(SIG_BLOCK, &usr2, 0);
	pages = mmap(0, PAGES * P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	word = aligned(15);
	setvbuf(stdout, malloc(P), _IOFBF, P);
	pipe(ends);
	socketpair(AF_UNIX, SOCK_DGRAM, 0, pair);
	pipes_and_sockets();
	waits();
	others();
	return 0;
}
