/* A parent asks for its child at once after the fork: the child may not have done anything yet. Some are killed then. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHILDREN 12

static int number;
static char text[1 << 16];
static int seen, written, mapped, limited, ended;

static void ask_for(pid_t pid, int expected)
{
	int found = 0, more = expected + 1000;
	char path[32];
	struct rlimit limit;
	struct iovec own = {&found, sizeof found}, of_child = {&number, sizeof number};
	seen += process_vm_readv(pid, &own, 1, &of_child, 1, 0) == sizeof found && found == expected;
	limited += prlimit(pid, RLIMIT_AS, 0, &limit) == 0;
	snprintf(path, sizeof path, "/proc/%d/maps", pid);
	int fd = open(path, O_RDONLY);
	ssize_t length = read(fd, text, sizeof text - 1);
	text[length < 0 ? 0 : length] = 0;
	mapped += strstr(text, "[stack]") && !strstr(text, "memfd:");
	close(fd);
	own.iov_base = &more;
	written += process_vm_writev(pid, &own, 1, &of_child, 1, 0) == sizeof more;
}

int main(void)
{
	int ends[2], status;
	char byte;
	if (pipe(ends))
		return 1;
	for (int i = 0; i < CHILDREN; i++) {
		number = i;
		pid_t pid = fork();
		if (pid == 0) {
			read(ends[0], &byte, 1);
			_exit(*(volatile int *)&number == i + 1000 ? 7 : 8);
		}
		ask_for(pid, i);
		if (i % 2)
			kill(pid, SIGKILL);
		else if (write(ends[1], "", 1) != 1)
			return 1;
		waitpid(pid, &status, 0);
		ended += i % 2 ? WIFSIGNALED(status) : WIFEXITED(status) && WEXITSTATUS(status) == 7;
	}
	printf("seen %d, written %d, mapped %d, limits %d, ended %d\n", seen, written, mapped, limited, ended);
	return 0;
}
