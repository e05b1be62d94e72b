/* The descriptors that are not the program's: above its hard limit of open files, or from 32,768 on. If the host's hard
 * limit leaves no room there, the program sees a lower one. So its limits are virtual: the host's soft limit is the
 * program's, but for the moment in which a descriptor is hidden; the host's hard limit stays high enough for that. */
#include "native.h"

#define RLIMIT_NOFILE 7
#define HIDDEN_COUNT 1024
#define MOST_TRIES 1000
#define F_DUPFD 0
#define F_DUPFD_CLOEXEC 1030
#define NR_capget 125
#define CAP_SYS_RESOURCE 24

struct limit { u64 soft, hard; };

static struct limit seen;	/* what the program sees */
static u64 host_hard;
static int wideners;	/* the threads that need the host's limit wide now */

/* The host's soft limit. The program shall not get the numbers of the stub's descriptors. */
static u64 host_soft(void)
{
	u64 hidden = process.hidden_fds;
	return seen.soft > hidden && seen.soft <= hidden + HIDDEN_COUNT ? hidden : seen.soft;
}

static long set_host_limit(u64 soft)
{
	struct limit limit = {soft, host_hard};
	return sys4(NR_prlimit64, 0, RLIMIT_NOFILE, &limit, 0);
}

/* Take up the limits of a new program; `soft` and `hard` are those that the program before has seen, or 0. */
void descriptors_start(u64 soft, u64 hard)
{
	sys4(NR_prlimit64, 0, RLIMIT_NOFILE, 0, &seen);
	host_hard = seen.hard;
	if (hard) {
		seen = (struct limit){soft, hard};
	} else if (host_hard <= (u64)process.hidden_fds + HIDDEN_COUNT) {
		seen.hard = process.hidden_fds;
		seen.soft = seen.soft < seen.hard ? seen.soft : seen.hard;
	}
}

/* Write them for the next program, each behind a slash. */
void descriptors_tell(char *to)
{
	*to++ = '/';
	to = put_number(to, seen.hard);
	to[-1] = '/';
	put_number(to, seen.soft);
}

/* From here to descriptors_narrow() the stub can have descriptors even if the program has as many as it may. The limit is the
 * process's: the last thread that needs it narrows it. A process that shares this memory has a limit of its own. */
void descriptors_widen(void)
{
	if (!this_thread()->is_sharer)
		__atomic_add_fetch(&wideners, 1, __ATOMIC_SEQ_CST);
	if (host_soft() < host_hard)
		set_host_limit(host_hard);
}

void descriptors_narrow(void)
{
	int is_shared = !this_thread()->is_sharer;
	if ((is_shared && __atomic_sub_fetch(&wideners, 1, __ATOMIC_SEQ_CST)) || host_soft() >= host_hard)
		return;
	set_host_limit(host_soft());
	if (is_shared && __atomic_load_n(&wideners, __ATOMIC_SEQ_CST))
		set_host_limit(host_hard);	/* another has begun meanwhile, and narrows it */
}

/* After a fork: the other threads are not here. */
void descriptors_fork(void)
{
	wideners = 0;
}

/* Copy a descriptor to where the program cannot reach it. Another thread may have narrowed the limit at that moment: then it is
 * tried again. */
static long copy_up(int fd, long how)
{
	long hidden = -EINVAL;
	for (int i = 0; i < MOST_TRIES && (hidden == -EINVAL || hidden == -EMFILE); i++) {
		descriptors_widen();
		hidden = sys3(NR_fcntl, fd, how, process.hidden_fds);
		descriptors_narrow();
	}
	return hidden;
}

/* Move a descriptor to where the program cannot reach it. */
long hide_fd(int fd)
{
	long hidden = copy_up(fd, F_DUPFD_CLOEXEC);
	if (hidden >= 0)
		sys1(NR_close, fd);
	return hidden;
}

/* A copy of a descriptor where the program cannot reach it; the next execve does not close it. Its number or -errno. */
long copy_hidden(int fd)
{
	return copy_up(fd, F_DUPFD);
}

/* The path of a program that is being loaded may lead by such a copy: it has done its duty. */
void drop_copy(const char *path)
{
	static const char by[] = "/proc/self/fd/";
	u64 fd = 0;
	for (const char *p = by; *p; p++)
		if (*path++ != *p)
			return;
	while (*path >= '0' && *path <= '9')
		fd = fd * 10 + (*path++ - '0');
	if (is_hidden(fd))
		sys1(NR_close, fd);
}

static int may_raise(void)
{
	struct { u32 version; int pid; } head = {0x20080522, 0};
	u32 data[6] = {0};
	return !sys2(NR_capget, &head, data) && data[0] >> CAP_SYS_RESOURCE & 1;
}

/* Source: Linux v6.8 kernel/sys.c: do_prlimit(). */
static long set_limit(struct limit new)
{
	u64 needed = process.hidden_fds + HIDDEN_COUNT, hard = new.hard;
	if (new.soft > new.hard)
		return -EINVAL;
	if (new.hard > seen.hard && !may_raise())
		return -EPERM;
	if (hard < needed)
		hard = host_hard < needed ? host_hard : needed;
	struct limit before = seen;
	seen = new;
	struct limit limit = {host_soft(), hard};
	long ret = sys4(NR_prlimit64, 0, RLIMIT_NOFILE, &limit, 0);
	if (ret)
		seen = before;
	else
		host_hard = hard;
	return ret;
}

/* The program asks for its limit of open files, or sets it. */
long descriptor_limit(u64 new, u64 old)
{
	struct limit wanted, before = seen;
	long ret = 0;
	if (new && user_copy(&wanted, (void *)new, sizeof wanted))
		return -EFAULT;
	if (new)
		ret = set_limit(wanted);
	return ret ? ret : old && user_copy((void *)old, &before, sizeof before) ? -EFAULT : 0;
}
