/* execve: the host really executes the stub again, which then is the loader of the new program. So what is the host's at
 * an execve (descriptors that close, other threads that end, the process's name) is as outside. The connection to kerneld
 * goes along: to kerneld it is one process before and after. */
#include "native.h"

#define EXEC_AREA 0x6a6000000000UL
#define EXEC_AREA_BYTES 0x1000000UL
#define MAX_STRINGS (EXEC_AREA_BYTES / 8 / 2)
#define AT_FDCWD -100
#define AT_EMPTY_PATH 0x1000
#define F_SETFD 2
#define FD_CLOEXEC 1
#define NR_newfstatat 262

static char *put_number(char *end, u64 number)
{
	char digits[24];
	int count = 0;
	do
		digits[count++] = '0' + number % 10;
	while (number /= 10);
	while (count)
		*end++ = digits[--count];
	*end++ = 0;
	return end;
}

/* Copy a vector's pointers, and have all its strings in the TLB; their number or -errno. */
static long take_vector(const char *const *from, const char **to, u64 room)
{
	for (u64 i = 0; i < room; i++) {
		to[i] = 0;
		if (from && user_copy(&to[i], &from[i], 8))
			return -EFAULT;
		if (!to[i])
			return i;
		if (user_strlen(to[i]) < 0)
			return -EFAULT;
	}
	return -E2BIG;
}

/* The path as the loader can open it: below a directory's descriptor by way of /proc/self/fd. */
static long take_path(int dirfd, const char *path, long flags, char *to)
{
	long length = user_strlen(path);
	char *end = to;
	if (length < 0)
		return -EFAULT;
	if (length >= 4096)
		return -ENAMETOOLONG;
	if (!length && !(flags & AT_EMPTY_PATH))
		return -ENOENT;
	if (dirfd != AT_FDCWD && (!length || path[0] != '/')) {
		memcpy(to, "/proc/self/fd/", 14);
		end = put_number(to + 14, dirfd) - 1;
		if (length)
			*end++ = '/';
	}
	return user_copy(end, path, length + 1) ? -EFAULT : 0;
}

long sys_exec(struct thread *t, struct ucontext *uc, int dirfd, const char *path, const u64 *vectors, long flags)
{
	if (sys6(NR_mmap, EXEC_AREA, EXEC_AREA_BYTES, 3, 0x4032, -1, 0) < 0)
		return -ENOMEM;
	char *real = (char *)EXEC_AREA, *words = real + 8192;
	const char **args = (const char **)(EXEC_AREA + 0x4000), **env = args + MAX_STRINGS;
	long ret = take_path(dirfd, path, flags, real);
	if (ret)
		return ret;
	descriptors_widen();
	ret = check_program(is_own_exe(real) ? process.exe : real);
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
	words[-1] = '/';
	put_number(words, descriptors_hard_limit());
	args[6] = is_own_exe(real) ? process.exe : real;
	args[7] = real;
	ret = take_vector((const char *const *)vectors[0], args + 8, MAX_STRINGS - 9);
	if (ret < 0)
		return ret;
	if (!ret) {
		args[8] = "";
		args[9] = 0;
	}
	ret = take_vector((const char *const *)vectors[1], env, MAX_STRINGS - 0x1000);
	if (ret < 0)
		return ret;
	/* By its descriptor: the program may be another user now, who may not come to its path. */
	sys3(NR_fcntl, t->conn, F_SETFD, 0);
	sys3(NR_fcntl, process.stub_fd, F_SETFD, 0);
	ret = sys5(NR_execveat, process.stub_fd, "", args, env, AT_EMPTY_PATH);
	sys3(NR_fcntl, t->conn, F_SETFD, FD_CLOEXEC);
	sys3(NR_fcntl, process.stub_fd, F_SETFD, FD_CLOEXEC);
	return ret;
}
