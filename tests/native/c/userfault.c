/* userfaultfd(2): faults, calls, mappings and children. Each scene prints what is the same inside and outside. */
#include "userfault.h"

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
	/* The child prints before its next fault. */
	int ret = copy(uffd, area + 2 * PAGE, source, 1, 0);
	unsigned long page = next_fault(uffd, &message);
	printf("copy %d\npage %lu\n", ret, page);
	kill(child, SIGKILL);
	waitpid(child, &status, 0);
	printf("ended with %d\n", status);
	printf("copy %d\n", copy(uffd, area + 3 * PAGE, source, 1, 0));
	printf("copied %ld\n", copied);
	printf("register %d\n", watch(uffd, area, 1));
	printf("wake %d\n", wake(uffd, area, 1));
	printf("read %zd\n", read(uffd, &message, sizeof message));
}

int main(int argc, char **argv)
{
	static const struct scene scenes[] = {
		{"faults", faults}, {"calls", calls}, {"user_mode_only", user_mode_only}, {"errors", errors},
		{"mappings", mappings}, {"forks", forks}, {"outlives", outlives}, {0, 0},
	};
	return play(scenes, argc, argv);
}
