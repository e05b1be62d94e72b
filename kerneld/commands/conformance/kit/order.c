/* In the check's process: how it makes puppets, and what it can order them. */
#define _GNU_SOURCE
#include "kit.h"
#include "orders.h"

#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void order(struct puppet *p, struct request *request)
{
	if (write(p->fd, request, sizeof(*request)) != (ssize_t)sizeof(*request))
		failed("process %d is gone before its time", (int)p->pid);
}

static long ask(struct puppet *p, struct request request)
{
	long ret;

	order(p, &request);
	if (read(p->fd, &ret, sizeof(ret)) != (ssize_t)sizeof(ret))
		failed("process %d died while it did what the check told it", (int)p->pid);
	return ret;
}

static long must(long ret, const char *what)
{
	if (ret < 0)
		skipped("the watched process cannot %s here: %s", what, errno_text((int)-ret));
	return ret;
}

long p_call(struct puppet *p, long nr, ...)
{
	struct request request = { CALL, { nr } };
	va_list args;

	va_start(args, nr);
	for (int at = 1; at <= 6; at++)
		request.args[at] = va_arg(args, long);
	va_end(args);
	return nr < 0 ? 0 : ask(p, request);
}

long p_open(struct puppet *p, pid_t target, ulong_t start, ulong_t pages, int then_start)
{
	return ask(p, (struct request){ OPEN, { target, (long)start, (long)pages, then_start } });
}

/* A process that has answered runs its own code: not that of a fork, or of a loader, which changes its memory too. */
static void must_begin(struct puppet *p)
{
	p_call(p, SYS_getpid, 0L, 0L, 0L, 0L, 0L, 0L);
}

struct puppet new_puppet(void)
{
	int pair[2], child_pair[2];
	struct puppet p = { 0 };

	if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) || socketpair(AF_UNIX, SOCK_SEQPACKET, 0, child_pair))
		skipped("no sockets: %s", strerror(errno));
	p.pid = fork();
	if (p.pid < 0)
		skipped("no process: %s", strerror(errno));
	if (p.pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(pair[0]);
		close(child_pair[0]);
		run_puppet(pair[1], child_pair[1]);
	}
	close(pair[1]);
	close(child_pair[1]);
	p.fd = pair[0];
	p.child_fd = child_pair[0];
	must_begin(&p);
	return p;
}

ulong_t p_mmap(struct puppet *p, ulong_t vaddr, ulong_t pages, int prot, int flags)
{
	flags |= vaddr ? MAP_FIXED : 0;
	return (ulong_t)must(p_call(p, SYS_mmap, vaddr, pages * PAGE, (long)prot, (long)flags, -1L, 0L), "mmap");
}

ulong_t p_mmap_file(struct puppet *p, ulong_t vaddr, ulong_t pages, int prot, int flags)
{
	struct request request = { MMAP_FILE, { (long)vaddr, (long)pages, prot, flags | MAP_FIXED } };

	return (ulong_t)must(ask(p, request), "map a file of /tmp");
}

void p_munmap(struct puppet *p, ulong_t vaddr, ulong_t pages)
{
	must(p_call(p, SYS_munmap, vaddr, pages * PAGE, 0L, 0L, 0L, 0L), "munmap");
}

void p_write(struct puppet *p, ulong_t vaddr, ulong_t pages, int byte)
{
	ask(p, (struct request){ WRITE, { (long)vaddr, (long)pages, byte } });
}

void p_read(struct puppet *p, ulong_t vaddr, ulong_t pages)
{
	ask(p, (struct request){ READ, { (long)vaddr, (long)pages } });
}

struct puppet p_fork(struct puppet *p)
{
	struct puppet child = { 0, p->child_fd, -1 };

	child.pid = (pid_t)must(ask(p, (struct request){ FORK, { 0 } }), "fork");
	must_begin(&child);
	return child;
}

void p_exec(struct puppet *p)
{
	must(ask(p, (struct request){ EXEC, { 0 } }), "execve");
}

void p_read_into(struct puppet *p, ulong_t vaddr)
{
	must(ask(p, (struct request){ READ_INTO, { (long)vaddr } }), "read");
}

ulong_t p_malloc(struct puppet *p, ulong_t bytes)
{
	return (ulong_t)ask(p, (struct request){ MALLOC, { (long)bytes } });
}

void p_free(struct puppet *p, ulong_t at)
{
	ask(p, (struct request){ FREE, { (long)at } });
}

void p_grow_stack(struct puppet *p, ulong_t bytes)
{
	ask(p, (struct request){ GROW_STACK, { (long)bytes } });
}

void p_hammer(struct puppet *p, ulong_t vaddr, ulong_t pages, int nr, int rounds)
{
	must(ask(p, (struct request){ HAMMER, { (long)vaddr, (long)pages, nr, rounds } }), "make threads");
}

void p_wait(struct puppet *p)
{
	ask(p, (struct request){ WAIT, { 0 } });
}

pid_t p_thread(struct puppet *p)
{
	return (pid_t)must(ask(p, (struct request){ THREAD, { 0 } }), "make a thread");
}

static void wait_for(struct puppet *p)
{
	char byte;

	/* EOF: also a process that is no child of this one has ended, and given up its files. */
	while (read(p->fd, &byte, 1) > 0)
		;
	waitpid(p->pid, NULL, 0);
	close(p->fd);
	p->fd = -1;
}

void p_start_thread_exit(struct puppet *p)
{
	order(p, &(struct request){ THREAD_EXIT, { 0 } });
	wait_for(p);
}

void p_die(struct puppet *p, int how)
{
	order(p, &(struct request){ DIE, { how } });
	wait_for(p);
}

void end_puppet(struct puppet *p)
{
	kill(p->pid, SIGKILL);
	wait_for(p);
}
