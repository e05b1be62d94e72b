/* userfaultfd(2): each scene prints what is the same inside and outside. Usage: userfault SCENE */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
#define PAGE 4096UL
#define MASK (-PAGE)
#define PAGES 8

static char *area;
static int uffd;
static const char *scene;

static void *map(unsigned long pages, int flags, int fd)
{
	return mmap(0, pages * PAGE, PROT_READ | PROT_WRITE, flags, fd, 0);
}

static int open_uffd(int flags, unsigned long features)
{
	struct uffdio_api api = {.api = UFFD_API, .features = features};
	int fd = syscall(SYS_userfaultfd, flags);
	if (fd < 0 || ioctl(fd, UFFDIO_API, &api)) {
		printf("userfaultfd: %s\n", strerror(errno));
		exit(1);
	}
	return fd;
}

/* 0 or -errno. */
static int watch(int fd, void *start, unsigned long pages)
{
	struct uffdio_register given = {.range = {(unsigned long)start, pages * PAGE}, .mode = UFFDIO_REGISTER_MODE_MISSING};
	return ioctl(fd, UFFDIO_REGISTER, &given) ? -errno : 0;
}

static int unwatch(int fd, void *start, unsigned long pages)
{
	struct uffdio_range range = {(unsigned long)start, pages * PAGE};
	return ioctl(fd, UFFDIO_UNREGISTER, &range) ? -errno : 0;
}

static int wake(int fd, void *start, unsigned long pages)
{
	struct uffdio_range range = {(unsigned long)start, pages * PAGE};
	return ioctl(fd, UFFDIO_WAKE, &range) ? -errno : 0;
}

static long copied;	/* what the last ioctl has said */

static int copy(int fd, void *to, const void *from, unsigned long pages, unsigned long mode)
{
	struct uffdio_copy given = {(unsigned long)to, (unsigned long)from, pages * PAGE, mode, 77};
	int ret = ioctl(fd, UFFDIO_COPY, &given) ? -errno : 0;
	copied = given.copy;
	return ret;
}

static int zero(int fd, void *to, unsigned long pages, unsigned long mode)
{
	struct uffdio_zeropage given = {{(unsigned long)to, pages * PAGE}, mode, 77};
	int ret = ioctl(fd, UFFDIO_ZEROPAGE, &given) ? -errno : 0;
	copied = given.zeropage;
	return ret;
}

/* Wait for a message; the number of the page in `area`. */
static unsigned long next_fault(int fd, struct uffd_msg *message)
{
	struct pollfd ready = {fd, POLLIN, 0};
	do
		poll(&ready, 1, -1);
	while (read(fd, message, sizeof *message) != sizeof *message);
	return (message->arg.pagefault.address - (unsigned long)area) / PAGE;
}

/* A thread that gives each page asked for: page N is full of 'a' + N; every third one is of zeros. */
static void *give(void *unused)
{
	char *source = map(1, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	struct uffd_msg message;
	(void)unused;
	for (;;) {
		unsigned long page = next_fault(uffd, &message);
		void *to = (void *)(message.arg.pagefault.address & MASK);
		memset(source, 'a' + page, PAGE);
		if (page % 3 == 2)
			zero(uffd, to, 1, 0);
		else
			copy(uffd, to, source, 1, 0);
	}
	return 0;
}

static void start(void *(*function)(void *))
{
	pthread_t thread;
	pthread_create(&thread, 0, function, 0);
}

static void flags_of(const char *what, void *address)
{
	FILE *smaps = fopen("/proc/self/smaps", "r");
	char line[512];
	unsigned long from, to, size = 0, at = (unsigned long)address;
	int here = 0;
	while (fgets(line, sizeof line, smaps)) {
		if (strspn(line, "0123456789abcdef") > 4 && sscanf(line, "%lx-%lx", &from, &to) == 2) {
			here = at >= from && at < to;
			size = to - from;
		}
		/* Soft-dirty bits are a matter of the kernel's configuration. */
		char *soft_dirty = strstr(line, " sd");
		if (soft_dirty)
			strcpy(soft_dirty, soft_dirty + 3);
		if (here && !strncmp(line, "VmFlags", 7))
			printf("%s: %lu pages,%s", what, size / PAGE, line + 8);
	}
	fclose(smaps);
}

static void result(const char *what, long ret)
{
	printf("%s %ld %s\n", what, ret, ret < 0 ? strerror(errno) : "");
}

static void show(const char *what)
{
	printf("%s: ", what);
	for (int i = 0; i < PAGES; i++)
		putchar(area[i * PAGE + 5] ? area[i * PAGE + 5] : '0');
	putchar('\n');
}

static void faults(void)
{
	start(give);
	area[3 * PAGE] = '!';
	show("read");
	printf("written: %c\n", area[3 * PAGE]);
	madvise(area + PAGE, 2 * PAGE, MADV_DONTNEED);
	area[PAGE + 5] = '?';
	show("again");
}

/* System calls read and write missing pages. */
static void calls(void)
{
	int ends[2];
	char text[8] = "";
	struct iovec local = {text, 6}, remote = {area + 4 * PAGE + 1, 6};
	start(give);
	pipe(ends);
	printf("write %zd\n", write(ends[1], area + 3, 4));
	printf("read %zd, %c\n", read(ends[0], area + PAGE + 5, 4), area[PAGE + 5]);
	printf("process_vm_readv %zd %s\n", process_vm_readv(getpid(), &local, 1, &remote, 1, 0), text);
	printf("madvise %d\n", madvise(area + 5 * PAGE, PAGE, MADV_POPULATE_WRITE));
	printf("mlock %d\n", mlock(area + 6 * PAGE, PAGE));
	show("then");
}

static void *give_nothing(void *unused)
{
	return unused;
}

static void user_mode_only(void)
{
	int ends[2];
	struct iovec local = {area, 6}, remote = {area + 4 * PAGE + 1, 6};
	pipe(ends);
	result("write", write(ends[1], area + 3, 4));
	result("process_vm_readv", process_vm_readv(getpid(), &local, 1, &remote, 1, 0));
	result("populate", madvise(area + 5 * PAGE, PAGE, MADV_POPULATE_WRITE));
	result("mlock", mlock(area + 5 * PAGE, PAGE));
	start(give);
	show("user");
}

static void told(const char *what, int ret)
{
	printf("%s: %d %ld\n", what, ret, copied);
	copied = 0;
}
#define TELL(what) told(#what, what)

static void errors(void)
{
	char *other = map(4, MAP_PRIVATE | MAP_ANONYMOUS, -1), *gone = map(1, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	char *file = mmap(0, PAGE, PROT_READ, MAP_PRIVATE, open("/proc/self/exe", O_RDONLY), 0);
	int second = open_uffd(O_CLOEXEC | O_NONBLOCK, 0), raw = syscall(SYS_userfaultfd, O_NONBLOCK);
	struct uffdio_api api = {.api = UFFD_API};
	struct uffdio_register given = {.range = {(unsigned long)other, PAGE}, .mode = 0};
	munmap(gone, PAGE);
	memset(other, 'x', 2 * PAGE);
	TELL(watch(uffd, area + 1, 1));
	TELL(watch(uffd, area, 0));
	TELL(watch(uffd, (char *)(1UL << 47), 1));
	TELL(watch(uffd, gone, 1));
	TELL(watch(uffd, file, 1));
	TELL(watch(second, area, 1));
	TELL(watch(uffd, area, PAGES));
	TELL(watch(raw, other, 1));
	TELL(ioctl(uffd, UFFDIO_REGISTER, &given) ? -errno : 0);
	given.mode = 1 << 7;
	TELL(ioctl(uffd, UFFDIO_REGISTER, &given) ? -errno : 0);
	TELL(ioctl(uffd, UFFDIO_REGISTER, (void *)8) ? -errno : 0);
	TELL(ioctl(uffd, _IOWR(UFFDIO, 0x3e, struct uffdio_api), &api) ? -errno : 0);
	TELL(ioctl(uffd, UFFDIO_API, &api) ? -errno : 0);
	printf("%lld %lld %lld\n", api.api, api.features, api.ioctls);
	api = (struct uffdio_api){.api = 0xab};
	TELL(ioctl(raw, UFFDIO_API, &api) ? -errno : 0);
	api = (struct uffdio_api){.api = UFFD_API, .features = 1UL << 60};
	TELL(ioctl(raw, UFFDIO_API, &api) ? -errno : 0);
	TELL(copy(uffd, area, other, 1, 0));
	TELL(copy(uffd, area, other, 1, 0));
	TELL(copy(uffd, area, other, 2, 0));
	TELL(copy(uffd, area + 2 * PAGE, other, 2, 0));
	TELL(copy(uffd, area + PAGE, other + 2 * PAGE, 2, 0));
	TELL(copy(uffd, area + PAGE, other, 1, 1 << 6));
	TELL(copy(uffd, area + PAGE, gone, 1, 0));
	TELL(copy(uffd, area + 5 * PAGE, (char *)(-PAGE / 2), 1, 0));
	TELL(copy(uffd, other, area, 1, 0));
	TELL(copy(uffd, gone, other, 1, 0));
	TELL(copy(uffd, area + 5 * PAGE, other, 4, 0));
	TELL(zero(uffd, area, 1, 0));
	TELL(zero(uffd, area + 4 * PAGE, 1, UFFDIO_ZEROPAGE_MODE_DONTWAKE));
	TELL(zero(uffd, area + 4 * PAGE + 8, 1, 0));
	TELL(zero(uffd, area + 5 * PAGE, 1, 1 << 5));
	TELL(wake(uffd, area, 1));
	TELL(wake(uffd, area, 0));
	TELL(unwatch(uffd, file, 1));
	TELL(unwatch(uffd, gone, 1));
	TELL(unwatch(uffd, other, 1));
	TELL(unwatch(uffd, area, PAGES));
	TELL(copy(uffd, area + 7 * PAGE, other, 1, 0));
	TELL((int)syscall(SYS_userfaultfd, 1 << 20) < 0 ? -errno : 0);
	TELL(ioctl(-1, UFFDIO_WAKE, &given) ? -errno : 0);
	TELL(ioctl(0, UFFDIO_WAKE, &given) ? -errno : 0);
}

/* Which mappings merge, and what calls on them leave. */
static void mappings(void)
{
	int second = open_uffd(O_NONBLOCK, 0);
	char *moved;
	flags_of("watched", area);
	unwatch(uffd, area + 2 * PAGE, 2);
	flags_of("before", area);
	flags_of("hole", area + 2 * PAGE);
	watch(second, area + 2 * PAGE, 2);
	flags_of("second's", area + 2 * PAGE);
	unwatch(second, area + 2 * PAGE, 1);
	flags_of("half", area + 2 * PAGE);
	flags_of("other half", area + 3 * PAGE);
	watch(uffd, area + 2 * PAGE, 1);
	flags_of("joined", area);
	mprotect(area, PAGE, PROT_READ);
	flags_of("read-only", area);
	mprotect(area, PAGE, PROT_READ | PROT_WRITE);
	flags_of("again", area);
	start(give);
	memset(area, 'm', PAGE);
	moved = mremap(area, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, map(1, MAP_PRIVATE | MAP_ANONYMOUS, -1));
	flags_of("moved", moved);
	printf("moved: %c\n", moved[9]);
	moved = mremap(area + PAGE, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 0);
	flags_of("left", area + PAGE);
	printf("left: %c\n", area[PAGE]);
	munmap(area + 4 * PAGE, PAGE);
	flags_of("behind the gap", area + 5 * PAGE);
	close(second);
	flags_of("of a closed one", area + 3 * PAGE);
	close(dup(uffd));
	flags_of("a copy is closed", area + 5 * PAGE);
}

/* A child's memory is not watched; what it inherits acts on its parent's. */
static void forks(void)
{
	struct uffd_msg message;
	pid_t child;
	char got;
	int status;
	fflush(stdout);
	child = fork();
	if (!child) {
		flags_of("child", area + PAGE);
		printf("child: %d\n", area[PAGE]);
		memset(area + 7 * PAGE, 'c', PAGE);
		printf("fault of the parent: %lu\n", next_fault(uffd, &message));
		printf("given by the child: %d\n", copy(uffd, area + 4 * PAGE, area + 7 * PAGE, 1, 0));
		fflush(stdout);
		_exit(0);
	}
	got = area[4 * PAGE + 5];
	waitpid(child, &status, 0);
	printf("parent: %c\n", got);
	printf("ended with %d\n", status);
}

/* The reader of an inherited descriptor lives longer than the memory. */
static void outlives(void)
{
	struct uffd_msg message;
	int status;
	char *source = map(1, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	int pair[2];
	fflush(stdout);
	socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair);
	pid_t child = fork();
	char control[CMSG_SPACE(sizeof(int))] = {0}, byte = 'x';
	struct iovec iov = {&byte, 1};
	struct msghdr head = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
	if (!child) {
		uffd = open_uffd(O_NONBLOCK, 0);
		watch(uffd, area, PAGES);
		struct cmsghdr *cmsg = CMSG_FIRSTHDR(&head);
		cmsg->cmsg_level = SOL_SOCKET;
		cmsg->cmsg_type = SCM_RIGHTS;
		cmsg->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(cmsg), &uffd, sizeof uffd);
		sendmsg(pair[0], &head, 0);
		printf("child: %c\n", area[2 * PAGE]);
		fflush(stdout);
		printf("never: %c\n", area[3 * PAGE]);
		_exit(0);
	}
	recvmsg(pair[1], &head, 0);
	memcpy(&uffd, CMSG_DATA(CMSG_FIRSTHDR(&head)), sizeof uffd);
	memset(source, 'p', PAGE);
	printf("page %lu\n", next_fault(uffd, &message));
	printf("copy %d\n", copy(uffd, area + 2 * PAGE, source, 1, 0));
	printf("page %lu\n", next_fault(uffd, &message));
	kill(child, SIGKILL);
	waitpid(child, &status, 0);
	printf("ended with %d\n", status);
	printf("copy %d\n", copy(uffd, area + 3 * PAGE, source, 1, 0));
	printf("copied %ld\n", copied);
	printf("register %d\n", watch(uffd, area, 1));
	printf("wake %d\n", wake(uffd, area, 1));
	printf("read %zd\n", read(uffd, &message, sizeof message));
}

static volatile int handled;
static sigjmp_buf out;

static void on_signal(int signo)
{
	handled++;
	if (signo == SIGUSR2)
		siglongjmp(out, 1);
}

static void *interrupt(void *thread)
{
	struct uffd_msg message;
	char *source = map(1, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	memset(source, 's', PAGE);
	printf("page %lu\n", next_fault(uffd, &message));
	pthread_kill(*(pthread_t *)thread, SIGUSR1);
	printf("page %lu again\n", next_fault(uffd, &message));
	printf("handled %d\n", handled);
	copy(uffd, area + PAGE, source, 1, 0);
	printf("page %lu\n", next_fault(uffd, &message));
	pthread_kill(*(pthread_t *)thread, SIGUSR2);
	return 0;
}

/* A signal with a handler ends the wait, and the access comes again; or never. */
static void signals(void)
{
	pthread_t self = pthread_self(), thread;
	struct uffd_msg message;
	struct pollfd ready = {uffd, POLLIN, 0};
	signal(SIGUSR1, on_signal);
	signal(SIGUSR2, on_signal);
	pthread_create(&thread, 0, interrupt, &self);
	printf("got %c\n", area[PAGE]);
	if (!sigsetjmp(out, 1))
		printf("never: %c\n", area[2 * PAGE]);
	pthread_join(thread, 0);
	printf("handled %d, poll %d, read %zd\n", handled, poll(&ready, 1, 0), read(uffd, &message, sizeof message));
	signal(SIGUSR1, SIG_DFL);
	fflush(stdout);
	for (int i = 0; i < 3; i++) {
		static const int by[] = {SIGTERM, SIGUSR1, SIGKILL};
		int status;
		pid_t child = fork();
		if (!child) {
			uffd = open_uffd(O_NONBLOCK, 0);
			watch(uffd, area, PAGES);
			pid_t waiter = getpid();
			if (!fork()) {
				next_fault(uffd, &message);
				kill(waiter, by[i]);
				_exit(0);
			}
			if (i == 1)
				write(1, area + 4 * PAGE, 1);
			_exit(area[4 * PAGE]);
		}
		waitpid(child, &status, 0);
		printf("killed by %d\n", status);
	}
}

static void *close_it(void *unused)
{
	struct uffd_msg message;
	printf("page %lu\n", next_fault(uffd, &message));
	close(uffd);
	return unused;
}

/* The last close lets all go on. */
static void closes(void)
{
	start(close_it);
	printf("zeros: %d\n", area[2 * PAGE]);
	flags_of("then", area);
	area[3 * PAGE + 5] = 'w';
	show("then");
}

static void *one(void *at)
{
	return (void *)(long)*(volatile char *)at;
}

/* Messages of waits that have ended are not read any more; several are read at once. */
static void withdrawn(void)
{
	struct uffd_msg messages[4];
	pthread_t threads[3];
	struct pollfd ready = {uffd, POLLIN, 0};
	char *source = map(1, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	void *said;
	int sum = 0;
	memset(source, 'w', PAGE);
	for (int i = 0; i < 3; i++) {
		pthread_create(&threads[i], 0, one, area + PAGE * (i / 2));
		if (i < 2)
			printf("page %lu\n", next_fault(uffd, messages));
		else
			poll(&ready, 1, -1);
		if (i == 1) {
			printf("wake %d\n", copy(uffd, area, source, 1, 0));
			pthread_join(threads[0], 0);
			pthread_join(threads[1], 0);
		}
	}
	printf("copy %d\n", copy(uffd, area + PAGE, source, 1, 0));
	pthread_join(threads[2], &said);
	printf("said %c, poll %d, read %zd\n", (int)(long)said, poll(&ready, 1, 0), read(uffd, messages, sizeof messages));
	for (int i = 0; i < 3; i++)
		pthread_create(&threads[i], 0, one, area + PAGE * (4 + i));
	while (sum < 3)
		sum += (int)(poll(&ready, 1, -1), read(uffd, messages, sizeof messages) / (int)sizeof *messages);
	printf("wake without a page: %d\n", wake(uffd, area + 4 * PAGE, 1));
	printf("page %lu\n", next_fault(uffd, messages));
	printf("copy %d\n", copy(uffd, area + 4 * PAGE, source, 1, UFFDIO_COPY_MODE_DONTWAKE));
	printf("wake %d\n", wake(uffd, area + 4 * PAGE, 1));
	pthread_join(threads[0], &said);
	printf("zeros %d\n", zero(uffd, area + 5 * PAGE, 2, 0));
	pthread_join(threads[1], 0);
	pthread_join(threads[2], 0);
	printf("said %c\n", (int)(long)said);
}

static void features(void)
{
	struct uffd_msg message;
	pthread_t thread;
	int ends[2], exact = open_uffd(O_NONBLOCK, UFFD_FEATURE_EXACT_ADDRESS | UFFD_FEATURE_THREAD_ID), bus = open_uffd(O_NONBLOCK, UFFD_FEATURE_SIGBUS);
	pipe(ends);
	unwatch(uffd, area, PAGES);
	watch(exact, area, 2);
	watch(bus, area + 4 * PAGE, 2);
	pthread_create(&thread, 0, one, area + 100);
	next_fault(exact, &message);
	printf("at %llu, flags %llu, a thread's: %d\n", message.arg.pagefault.address - (unsigned long)area,
	       message.arg.pagefault.flags, message.arg.pagefault.feat.ptid > (unsigned)getpid());
	zero(exact, area, 1, 0);
	pthread_join(thread, 0);
	signal(SIGBUS, on_signal);
	result("write", write(ends[1], area + 4 * PAGE, 1));
	signal(SIGBUS, SIG_DFL);
	fflush(stdout);
	area[4 * PAGE] = 1;
}

/* epoll, and a descriptor that waits by itself. */
static void waiting(void)
{
	struct epoll_event event = {.events = EPOLLIN};
	struct uffd_msg message;
	pthread_t thread;
	int epoll = epoll_create1(0), blocking = open_uffd(O_CLOEXEC, 0);
	printf("flags %d %d\n", fcntl(uffd, F_GETFL) & O_NONBLOCK, fcntl(uffd, F_GETFD));
	printf("flags %d %d\n", fcntl(blocking, F_GETFL) & O_NONBLOCK, fcntl(blocking, F_GETFD));
	epoll_ctl(epoll, EPOLL_CTL_ADD, uffd, &event);
	printf("epoll %d\n", epoll_wait(epoll, &event, 1, 0));
	pthread_create(&thread, 0, one, area);
	printf("epoll %d\n", epoll_wait(epoll, &event, 1, -1));
	read(uffd, &message, sizeof message);
	printf("epoll %d\n", epoll_wait(epoll, &event, 1, 0));
	zero(uffd, area, 1, 0);
	pthread_join(thread, 0);
	unwatch(uffd, area + 4 * PAGE, 1);
	watch(blocking, area + 4 * PAGE, 1);
	pthread_create(&thread, 0, one, area + 4 * PAGE);
	printf("read %zd\n", read(blocking, &message, sizeof message));
	printf("page %lld\n", (message.arg.pagefault.address - (unsigned long)area) / PAGE);
	zero(blocking, area + 4 * PAGE, 1, 0);
	pthread_join(thread, 0);
}

/* An execve: the memory has gone, its descriptor is closed or kept. */
static void execs(void)
{
	char number[16];
	sprintf(number, "%d", uffd);
	fflush(stdout);
	execl("/proc/self/exe", "userfault", "behind", number, (char *)0);
}

static void behind(int fd)
{
	struct uffdio_copy given = {PAGE * 64, (unsigned long)map(1, MAP_PRIVATE | MAP_ANONYMOUS, -1), PAGE, 0, 0};
	result("copy", ioctl(fd, UFFDIO_COPY, &given));
}

static void setup(const char *kind)
{
	int flags = strcmp(scene, "user_mode_only") ? 0 : UFFD_USER_MODE_ONLY;
	int fd = memfd_create("memory", 0);
	ftruncate(fd, PAGES * PAGE);
	if (!strcmp(kind, "private"))
		area = map(PAGES + 2, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	else if (!strcmp(kind, "shared"))
		area = map(PAGES + 2, MAP_SHARED | MAP_ANONYMOUS, -1);
	else
		area = map(PAGES, !strcmp(kind, "memfd") ? MAP_SHARED : MAP_PRIVATE, fd);
	if (strcmp(kind, "memfd") && strcmp(kind, "memfd_private")) {
		/* Nothing that could merge with it lies beside it. */
		munmap(area, PAGE);
		area += PAGE;
		munmap(area + PAGES * PAGE, PAGE);
	}
	uffd = open_uffd(O_NONBLOCK | flags, 0);
	if (watch(uffd, area, PAGES))
		printf("register: %s\n", strerror(errno));
}

int main(int argc, char **argv)
{
	static const struct { const char *name; void (*play)(void); } scenes[] = {
		{"faults", faults}, {"calls", calls}, {"user_mode_only", user_mode_only}, {"errors", errors},
		{"mappings", mappings}, {"forks", forks}, {"outlives", outlives}, {"signals", signals}, {"closes", closes},
		{"withdrawn", withdrawn}, {"features", features}, {"waiting", waiting}, {"execs", execs},
	};
	scene = argv[1];
	setvbuf(stdout, 0, _IOLBF, 0);
	start(give_nothing);	/* so that its stack and arena lie where no scene looks */
	if (!strcmp(scene, "behind")) {
		behind(atoi(argv[2]));
		return 0;
	}
	setup(argc > 2 ? argv[2] : "private");
	for (unsigned i = 0; i < sizeof scenes / sizeof *scenes; i++)
		if (!strcmp(scenes[i].name, scene))
			scenes[i].play();
	fflush(stdout);
	_exit(0);
}
