/* Programs that execve and execveat refuse, and why. With "busy" also one that is open for writing. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static char *const argv[] = {"true", 0}, *const env[] = {0};

static void try(const char *what, int dirfd, const char *path, int flags)
{
	syscall(SYS_execveat, dirfd, path, argv, env, flags);
	printf("%s: %s\n", what, strerror(errno));
}

static void copy_of_true(const char *path)
{
	char command[128];
	snprintf(command, sizeof command, "cp /bin/true %s", path);
	if (system(command))
		exit(8);
}

int main(int argc, char **given)
{
	char folder[] = "/tmp/refused-XXXXXX";
	if (!mkdtemp(folder) || chdir(folder))
		return 1;
	copy_of_true("file");
	int dir = open(".", O_RDONLY), file = open("file", O_RDONLY);
	if (symlink("file", "link"))
		return 1;
	try("no such descriptor", 200, "file", 0);
	try("no such descriptor, by a whole path", 200, "/nothing", 0);
	try("unknown flags", dir, "file", 0x40);
	try("a link", dir, "link", AT_SYMLINK_NOFOLLOW);
	try("below a file", file, "file", 0);
	try("an empty path", dir, "", 0);
	try("a folder", dir, "", AT_EMPTY_PATH);
	try("nothing", dir, "nothing", 0);
	try("a bad path", dir, (char *)8, 0);
	chmod("file", 0600);
	try("not executable", dir, "file", 0);
	try("not executable, by its descriptor", file, "", AT_EMPTY_PATH);
	chmod("file", 0700);
	if (argc > 1 && !strcmp(given[1], "busy")) {
		int writer = open("file", O_WRONLY);
		try("open for writing", AT_FDCWD, "file", 0);
		try("open for writing, by its descriptor", file, "", AT_EMPTY_PATH);
		close(writer);
	}
	fflush(stdout);
	int status = system("./file && rm -f file link");
	printf("in the end %d, %d\n", status, rmdir(folder));
	syscall(SYS_execveat, open("/bin/true", O_RDONLY | O_CLOEXEC), "", argv, env, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW);
	return 1;
}
