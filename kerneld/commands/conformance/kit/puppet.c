/*
 * In a puppet, a process that is watched, or that calls beside the check's own process. A puppet waits for an order, does
 * it, and answers with one number. So a check is written as one sequence, from the side of the inspector.
 */
#define _GNU_SOURCE
#include "kit.h"
#include "orders.h"

#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MAX_THREADS 8

static pthread_t threads[MAX_THREADS];
static long nr_threads;
static struct request hammering;

static void *hammer(void *seed)
{
	unsigned state = (unsigned)(uintptr_t)seed * 2654435761u + 1;
	char *window = (char *)hammering.args[0];

	for (long round = 0; round < hammering.args[3]; round++) {
		state = state * 1664525u + 1013904223u;
		ulong_t page = (state >> 8) % (ulong_t)hammering.args[1], pages = 1 + (state >> 4) % 4;
		char *at = window + page * PAGE;

		if (page + pages > (ulong_t)hammering.args[1])
			continue;
		switch (state >> 29) {
		case 0:
		case 1:
			munmap(at, pages * PAGE);
			break;
		case 2:
			madvise(at, pages * PAGE, MADV_DONTNEED);
			break;
		case 3:
		case 4:
			mmap(at, pages * PAGE, RW, ANON | MAP_FIXED | MAP_POPULATE, -1, 0);
			break;
		default:
			mmap(at, pages * PAGE, RW, ANON | MAP_FIXED, -1, 0);
		}
	}
	return NULL;
}

static void *idle(void *tid_at)
{
	__atomic_store_n((int *)tid_at, (int)syscall(SYS_gettid), __ATOMIC_SEQ_CST);
	for (;;)
		pause();
	return tid_at;
}

static void *exit_all(void *unused)
{
	_exit(0);
	return unused;
}

static void __attribute__((noinline)) grow_stack(long bytes)
{
	volatile char page[4096];

	page[0] = 1;
	if (bytes > 0)
		grow_stack(bytes - 4096);
	page[1] = page[0];
}

static long do_read_into(ulong_t vaddr)
{
	int ends[2];
	long got = -1;

	if (pipe(ends) == 0 && write(ends[1], "r", 1) == 1)
		got = read(ends[0], (void *)vaddr, 1);
	close(ends[0]);
	close(ends[1]);
	return got;
}

static long do_mmap_file(const long *args)
{
	char path[] = "/tmp/shadowpt-check-XXXXXX", page[4096];
	long at = -EIO;
	int fd = mkstemp(path);

	if (fd < 0)
		return -errno;
	unlink(path);
	memset(page, 'f', sizeof(page));
	for (long done = 0; done < args[1] * (long)PAGE; done += (long)sizeof(page))
		if (write(fd, page, sizeof(page)) != (ssize_t)sizeof(page))
			return -EIO;
	at = (long)mmap((void *)args[0], (size_t)args[1] * PAGE, (int)args[2], (int)args[3], fd, 0);
	if (at == -1)
		at = -errno;
	close(fd);
	return at;
}

static long do_open(const long *args)
{
	long ret = try_open((pid_t)args[0], (ulong_t)args[1], (ulong_t)args[2]);

	return ret == 0 && args[3] ? sp_start() : ret;
}


static long do_fork(int fd, int *child_fd)
{
	pid_t child = fork();

	if (child == 0) {
		/* It lives on when its parent ends; then who waits for the parent's end of file must see it. */
		close(fd);
		run_puppet(*child_fd, -1);
	}
	close(*child_fd);
	*child_fd = -1;
	return child < 0 ? -errno : child;
}

static long do_exec(int fd)
{
	char number[16];

	snprintf(number, sizeof(number), "%d", fd);
	execl(own_path, "shadowpt-check", "--puppet", number, abi->name, (char *)NULL);
	return -errno;
}

static void die(long how)
{
	if (how == 0)
		_exit(0);
	signal((int)how, SIG_DFL);
	raise((int)how);
}

static long obey(const struct request *request, int fd, int *child_fd)
{
	const long *args = request->args;
	static int tid;
	long ret;

	switch ((enum order)request->order) {
	case CALL:
		ret = syscall(args[0], args[1], args[2], args[3], args[4], args[5], args[6]);
		return ret == -1 ? -errno : ret;
	case OPEN:
		return do_open(args);
	case WRITE:
		for (long page = 0; page < args[1]; page++)
			memset((void *)(args[0] + page * page_bytes), (int)args[2], PAGE);
		return 0;
	case READ:
		for (long page = 0; page < args[1]; page++)
			(void)*(volatile char *)(args[0] + page * page_bytes);
		return 0;
	case FORK:
		return do_fork(fd, child_fd);
	case EXEC:
		return do_exec(fd);
	case READ_INTO:
		return do_read_into((ulong_t)args[0]);
	case MALLOC:
		return (long)malloc((size_t)args[0]);
	case FREE:
		free((void *)args[0]);
		return 0;
	case GROW_STACK:
		grow_stack(args[0]);
		return 0;
	case HAMMER:
		hammering = *request;
		for (nr_threads = 0; nr_threads < args[2]; nr_threads++)
			if (pthread_create(&threads[nr_threads], NULL, hammer, (void *)(nr_threads + 1)))
				return -EAGAIN;
		return 0;
	case WAIT:
		while (nr_threads)
			pthread_join(threads[--nr_threads], NULL);
		return 0;
	case THREAD:
		if (pthread_create(&threads[0], NULL, idle, &tid))
			return -EAGAIN;
		while (!__atomic_load_n(&tid, __ATOMIC_SEQ_CST))
			usleep(100);
		return tid;
	case THREAD_EXIT:
		pthread_create(&threads[0], NULL, exit_all, NULL);
		for (;;)
			pause();
	case DIE:
		die(args[0]);
		return -1;
	case MMAP_FILE:
		return do_mmap_file(args);
	}
	return -ENOSYS;
}

void run_puppet(int fd, int child_fd)
{
	struct request request;

	while (read(fd, &request, sizeof(request)) == (ssize_t)sizeof(request)) {
		long ret = obey(&request, fd, &child_fd);

		if (write(fd, &ret, sizeof(ret)) != (ssize_t)sizeof(ret))
			break;
	}
	_exit(0);
}

/* After execve: say that the new program runs, and go on. */
void serve_puppet(int fd, int child_fd)
{
	long ret = 0;

	if (write(fd, &ret, sizeof(ret)) != (ssize_t)sizeof(ret))
		_exit(1);
	run_puppet(fd, child_fd);
}
