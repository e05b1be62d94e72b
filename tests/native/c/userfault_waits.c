/* userfaultfd(2): what ends a wait, the features, who waits for messages, and an execve. Each scene prints what is the same inside
 * and outside. */
#include "userfault.h"

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

int main(int argc, char **argv)
{
	static const struct scene scenes[] = {
		{"signals", signals}, {"closes", closes}, {"withdrawn", withdrawn}, {"features", features}, {"waiting", waiting},
		{"execs", execs}, {0, 0},
	};
	if (!strcmp(argv[1], "behind")) {
		setvbuf(stdout, 0, _IOLBF, 0);
		behind(atoi(argv[2]));
		return 0;
	}
	return play(scenes, argc, argv);
}
