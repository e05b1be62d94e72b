/* A file that is mapped, written by calls and through the mapping, cut and made longer. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define P 4096

static void touch_in_child(volatile char *p)
{
	int status;
	fflush(stdout);
	if (!fork())
		_exit(*p);
	wait(&status);
	printf("the child ends by %d\n", status);
}

int main(void)
{
	char bytes[4 * P], read_back[8] = {0};
	char name[] = "shared_file.XXXXXX";
	int fd = mkstemp(name);
	memset(bytes, 'a', sizeof bytes);
	printf("written %zd\n", write(fd, bytes, sizeof bytes));
	char *shared = mmap(0, 8 * P, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	char *private = mmap(0, 4 * P, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	private[P] = 'p';
	printf("%c%c %c%c\n", shared[0], shared[P], private[0], private[P]);
	pwrite(fd, "call", 4, P - 2);
	printf("%.4s, private %.2s\n", shared + P - 2, private + P);
	memcpy(shared + 2 * P, "store", 5);
	pread(fd, read_back, 5, 2 * P);
	printf("%s\n", read_back);
	struct iovec two[2] = {{"ve", 2}, {"ctor", 4}};
	lseek(fd, 3 * P, SEEK_SET);
	writev(fd, two, 2);
	printf("%.6s\n", shared + 3 * P);
	memcpy(shared, "sent", 4);
	off_t from = 0;
	lseek(fd, 3 * P + 100, SEEK_SET);
	int other = open(name, O_RDONLY);
	printf("sent %zd: ", sendfile(fd, other, &from, 4));
	printf("%.4s\n", shared + 3 * P + 100);
	ftruncate(fd, P);
	touch_in_child(shared + P);
	touch_in_child(shared);
	ftruncate(fd, 6 * P);
	printf("longer: %d %d\n", shared[P], shared[5 * P]);
	shared[5 * P] = 'l';
	pread(fd, read_back, 1, 5 * P);
	printf("%c\n", read_back[0]);
	close(open(name, O_RDWR | O_TRUNC));
	touch_in_child(shared);
	truncate(name, 2 * P);
	printf("after all: %d\n", shared[0]);
	if (!fork()) {
		memcpy(shared, "child", 5);
		_exit(0);
	}
	wait(0);
	pread(fd, read_back, 5, 0);
	printf("%.5s\n", read_back);
	unlink(name);
	return 0;
}
