/* execve: the host really executes the stub again, which then is the loader of the new program. So what is the host's at
 * an execve (descriptors that close, other threads that end, the process's name) is as outside. The connection to kerneld
 * goes along: to kerneld it is one process before and after. */
#include "../native.h"

#define EXEC_AREA 0x6a6000000000UL
#define EXEC_AREA_BYTES 0x1000000UL
#define MAX_STRINGS (EXEC_AREA_BYTES / 8 / 2)
#define AT_EMPTY_PATH 0x1000
#define AT_SYMLINK_NOFOLLOW 0x100
#define F_GETFD 1
#define F_SETFD 2
#define FD_CLOEXEC 1
#define NR_newfstatat 262
#define RLIMIT_STACK 3
#define ARG_MAX 0x20000UL
#define MOST_STRINGS 0x600000UL /* three quarters of _STK_LIM */
#define STUBS_STRINGS 0x4000UL	/* more than the stub's own arguments: two paths and some numbers */

/* Copy a vector's pointers, and have all its strings in the TLB; their number or -errno. `bytes` grows by what the new
 * program's stack has of them. */
static long take_vector(const char *const *from, const char **to, u64 room, u64 *bytes)
{
	for (u64 i = 0; i < room; i++) {
		to[i] = 0;
		if (from && user_copy(&to[i], &from[i], 8))
			return -EFAULT;
		if (!to[i])
			return i;
		long length = user_strlen(to[i]);
		if (length < 0)
			return -EFAULT;
		*bytes += length + 1 + sizeof to[i];
	}
	return -E2BIG;
}

/* Whether the strings are within the program's limit of the stack, which kerneld has: 0 or -E2BIG. The host has a limit of
 * its own, which is raised if it is less: the stub is executed with these strings, and some more.
 * Source: Linux v6.8 fs/exec.c: bprm_stack_limits(). */
static long check_strings(struct thread *t, u64 bytes)
{
	u64 args[6] = {0, RLIMIT_STACK, 0, 1}, limit[2], needed = (bytes + STUBS_STRINGS) * 4;
	struct answer answer = ask(t, NR_prlimit64, args, 0, 0, -1);
	if (answer.ret < 0)
		return answer.ret;
	memcpy(limit, answer.data, sizeof limit);
	u64 most = limit[0] / 4 < MOST_STRINGS ? limit[0] / 4 : MOST_STRINGS;
	if (bytes > (most > ARG_MAX ? most : ARG_MAX))
		return -E2BIG;
	if (!sys4(NR_prlimit64, 0, RLIMIT_STACK, 0, limit) && limit[0] < needed) {
		limit[0] = needed < limit[1] ? needed : limit[1];
		sys4(NR_prlimit64, 0, RLIMIT_STACK, limit, 0);
	}
	return 0;
}

static int is_link(const char *path)
{
	char byte;
	return sys3(NR_readlink, path, &byte, 1) > 0;
}

struct path { char real[4352], name[4352]; int is_lost; };

/* Where the loader finds the program, and how the program is called: below a descriptor both go by way of that, and the
 * loader has one of its own, which an execve does not close. If it closes that of the program, the program's path is lost.
 * Source: Linux v6.8 fs/exec.c: alloc_bprm(). */
static long take_path(int dirfd, const char *path, long flags, struct path *to, long *kept)
{
	long length = user_strlen(path);
	char *real = to->real, *name = to->name, first = 0;
	to->is_lost = 0;
	if (length < 0)
		return -EFAULT;
	if (length >= 4096)
		return -ENAMETOOLONG;
	if ((!length && !(flags & AT_EMPTY_PATH)) || user_copy(&first, path, 1))
		return length ? -EFAULT : -ENOENT;
	if (dirfd != AT_FDCWD && first != '/') {
		*kept = is_hidden(dirfd) ? -EBADF : copy_hidden(dirfd);
		if (*kept < 0)
			return *kept;
		to->is_lost = sys2(NR_fcntl, dirfd, F_GETFD) & FD_CLOEXEC;
		memcpy(real, "/proc/self/fd/", 14);
		memcpy(name, "/dev/fd/", 8);
		real = put_number(real + 14, *kept) - 1;
		name = put_number(name + 8, dirfd) - 1;
		if (length)
			*real++ = *name++ = '/';
	}
	if (user_copy(real, path, length + 1) || user_copy(name, path, length + 1))
		return -EFAULT;
	return length && flags & AT_SYMLINK_NOFOLLOW && is_link(to->real) ? -ELOOP : 0;
}

static long take_vectors(struct thread *t, const char *name, const char **args, const char **env, const u64 *vectors)
{
	u64 bytes = string_length(name) + 1;
	long ret = take_vector((const char *const *)vectors[0], args, MAX_STRINGS - 9, &bytes);
	if (!ret) {
		args[0] = "";
		args[1] = 0;
		bytes += 1 + sizeof args[0];
	}
	if (ret >= 0)
		ret = take_vector((const char *const *)vectors[1], env, MAX_STRINGS - 0x1000, &bytes);
	return ret < 0 ? ret : check_strings(t, bytes);
}

static long exec_path(struct thread *t, struct ucontext *uc, const struct path *path, const u64 *vectors)
{
	char exe[EXE_BYTES];
	const char *program = exe_of(path->real, exe) ? exe : path->real;
	char *words = (char *)(EXEC_AREA + sizeof *path);
	const char **args = (const char **)(EXEC_AREA + 0x4000), **env = args + MAX_STRINGS;
	descriptors_widen();
	long ret = check_program(t, program, path->is_lost);
	descriptors_narrow();
	if (ret)
		return ret;
	args[0] = "kerneld-exec";
	args[1] = words;
	words = put_number(words, t->conn);
	args[2] = process.socket_path;
	args[3] = words;
	words = put_number(words, process.hidden_fds);
	words[-1] = '/';
	args[4] = words = put_number(words, process.abi);
	/* Here nothing is to come in: the mask is the loader's to set. */
	args[5] = words = put_number(words, uc->sigmask | t->masked);
	words = put_number(words, process.stub_fd);
	descriptors_tell(words - 1);
	args[6] = program;
	args[7] = path->name;
	ret = take_vectors(t, path->name, args + 8, env, vectors);
	if (ret)
		return ret;
	/* By its descriptor: the program may be another user now, who may not come to its path. */
	sys3(NR_fcntl, t->conn, F_SETFD, 0);
	sys3(NR_fcntl, process.stub_fd, F_SETFD, 0);
	if (t->is_traced_by_exec)
		sys1(NR_ptrace, 0 /* PTRACE_TRACEME */);
	ret = sys5(NR_execveat, process.stub_fd, "", args, env, AT_EMPTY_PATH);
	sys3(NR_fcntl, t->conn, F_SETFD, FD_CLOEXEC);
	sys3(NR_fcntl, process.stub_fd, F_SETFD, FD_CLOEXEC);
	return ret;
}

long sys_exec(struct thread *t, struct ucontext *uc, int dirfd, const char *path, const u64 *vectors, long flags)
{
	struct path *found = (struct path *)EXEC_AREA;
	long kept = -1;
	if (sys6(NR_mmap, EXEC_AREA, EXEC_AREA_BYTES, 3, 0x4032, -1, 0) < 0)
		return -ENOMEM;
	if (flags & ~(AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW))
		return -EINVAL;
	long ret = take_path(dirfd, path, flags, found, &kept);
	if (!ret)
		ret = exec_path(t, uc, found, vectors);
	if (kept >= 0)
		sys1(NR_close, kept);
	return ret;
}
