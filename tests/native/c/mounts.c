/* The calls that make a mount step by step, fanotify and cachestat: what each says, with right and wrong arguments.
 *
 * mounts DIRECTORY */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { NR_OPEN_TREE = 428, NR_MOVE_MOUNT, NR_FSOPEN, NR_FSCONFIG, NR_FSMOUNT, NR_FSPICK, NR_MOUNT_SETATTR = 442, NR_CACHESTAT = 451 };
enum { SET_FLAG, SET_STRING, SET_BINARY, SET_PATH, CREATE = 6 };

static long tell(const char *what, long ret)
{
	printf("%s: %s\n", what, ret < 0 ? strerrorname_np(errno) : "done");
	return ret;
}

static void mount_one(const char *directory)
{
	uint64_t attributes[4] = {1 /* MOUNT_ATTR_RDONLY */};
	char path[256];
	if (!tell("unshare", unshare(CLONE_NEWNS)))
		mount(0, "/", 0, MS_REC | MS_PRIVATE, 0);
	long fs = tell("fsopen", syscall(NR_FSOPEN, "tmpfs", 0));
	tell("an unknown type", syscall(NR_FSOPEN, "no such type", 0));
	tell("a bad type", syscall(NR_FSOPEN, 16, 0));
	tell("a string", syscall(NR_FSCONFIG, fs, SET_STRING, "size", "65536", 0));
	tell("a wrong string", syscall(NR_FSCONFIG, fs, SET_STRING, "size", "many", 0));
	tell("a bad string", syscall(NR_FSCONFIG, fs, SET_STRING, "size", 16, 0));
	tell("a flag", syscall(NR_FSCONFIG, fs, SET_FLAG, "ro", 0, 0));
	tell("a binary", syscall(NR_FSCONFIG, fs, SET_BINARY, "size", "12", 2));
	tell("a path", syscall(NR_FSCONFIG, fs, SET_PATH, "source", "/", AT_FDCWD));
	tell("no descriptor", syscall(NR_FSCONFIG, -1, CREATE, 0, 0, 0));
	tell("create", syscall(NR_FSCONFIG, fs, CREATE, 0, 0, 0));
	long made = tell("fsmount", syscall(NR_FSMOUNT, fs, 0, 0));
	tell("move_mount", syscall(NR_MOVE_MOUNT, made, "", AT_FDCWD, directory, 4 /* MOVE_MOUNT_F_EMPTY_PATH */));
	tell("mount_setattr", syscall(NR_MOUNT_SETATTR, AT_FDCWD, directory, 0, attributes, sizeof attributes));
	tell("its size", syscall(NR_MOUNT_SETATTR, AT_FDCWD, directory, 0, attributes, 3));
	snprintf(path, sizeof path, "%s/file", directory);
	tell("a file", open(path, O_CREAT | O_RDWR, 0600));
	tell("fspick", syscall(NR_FSPICK, AT_FDCWD, directory, 0));
	tell("open_tree", syscall(NR_OPEN_TREE, AT_FDCWD, directory, 1 /* OPEN_TREE_CLONE */));
	tell("open_tree of nothing", syscall(NR_OPEN_TREE, AT_FDCWD, path, 1));
}

static void cache(const char *directory)
{
	uint64_t range[2] = {0, 0}, found[5] = {0};
	char path[256], bytes[8192] = "";
	snprintf(path, sizeof path, "%s/cached", directory);
	int fd = open(path, O_CREAT | O_RDWR, 0600);
	write(fd, bytes, sizeof bytes);
	tell("cachestat", syscall(NR_CACHESTAT, fd, range, found, 0));
	printf("%ld pages\n", (long)found[0]);
	tell("a bad range", syscall(NR_CACHESTAT, fd, 16, found, 0));
	tell("a bad answer", syscall(NR_CACHESTAT, fd, range, 16, 0));
	unlink(path);
}

static void watch(const char *directory)
{
	long fd = tell("fanotify_init", syscall(SYS_fanotify_init, 2 /* FAN_NONBLOCK */, O_RDONLY));
	char path[256];
	snprintf(path, sizeof path, "%s/watched", directory);
	close(open(path, O_CREAT, 0600));
	tell("fanotify_mark", syscall(SYS_fanotify_mark, fd, 1, 0x20 /* FAN_OPEN */, AT_FDCWD, path));
	tell("of nothing", syscall(SYS_fanotify_mark, fd, 1, 0x20, AT_FDCWD, "/no such directory"));
	tell("of a bad path", syscall(SYS_fanotify_mark, fd, 1, 0x20, AT_FDCWD, 16));
	open(path, O_RDONLY);
	char event[24];
	printf("an event of %ld bytes\n", fd < 0 ? -1L : (long)read(fd, event, sizeof event));
	unlink(path);
}

int main(int count, char **words)
{
	if (count < 2)
		return 1;
	cache(words[1]);
	watch(words[1]);
	mount_one(words[1]);
	return 0;
}
