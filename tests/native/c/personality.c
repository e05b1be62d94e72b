/* The flags of personality(2) about memory: what they do at once, what at an execve, who inherits them. Prints rights, not addresses. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/shm.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096UL
#define NOTHING 0xffffffff

static const char *rights(unsigned long address)
{
	static char all[4][8];
	static int next;
	char *found = all[next++ % 4];
	unsigned long start, end;
	char line[512];
	FILE *maps = fopen("/proc/self/maps", "r");
	strcpy(found, "none");
	while (fgets(line, sizeof line, maps))
		if (sscanf(line, "%lx-%lx %4s", &start, &end, found) == 3 && start <= address && address < end)
			break;
		else
			strcpy(found, "none");
	fclose(maps);
	return found;
}

static void show_process(const char *who)
{
	char text[32] = "";
	int fd = open("/proc/self/personality", O_RDONLY);
	if (read(fd, text, sizeof text - 1) < 0)
		perror("read");
	close(fd);
	printf("%s: %x, /proc says %s", who, personality(NOTHING), text);
	fflush(stdout);
}

static char *map(int prot, int flags, int fd, const char *what)
{
	char *at = mmap(0, 2 * PAGE, prot, flags, fd, 0);
	if (at == MAP_FAILED)
		printf("%s: errno %d\n", what, errno);
	else
		printf("%s: %s\n", what, rights((unsigned long)at));
	return at;
}

static void show_memory(void)
{
	int anonymous = MAP_PRIVATE | MAP_ANONYMOUS;
	char *at = map(PROT_READ | PROT_WRITE, anonymous, -1, "mmap rw"), *self;
	mprotect(at, PAGE, PROT_READ);
	printf("mprotect r: %s, behind it %s\n", rights((unsigned long)at), rights((unsigned long)at + PAGE));
	mprotect(at, PAGE, PROT_NONE);
	printf("mprotect none: %s\n", rights((unsigned long)at));
	mprotect(at, PAGE, PROT_WRITE);
	printf("mprotect w: %s\n", rights((unsigned long)at));
	map(PROT_WRITE, anonymous, -1, "mmap w");
	map(PROT_NONE, anonymous, -1, "mmap none");
	map(PROT_READ, MAP_SHARED | MAP_ANONYMOUS, -1, "mmap shared r");
	int fd = open("/proc/self/exe", O_RDONLY);
	self = map(PROT_READ, MAP_PRIVATE, fd, "mmap file r");
	if (self[1] != 'E')
		printf("another file\n");
	close(fd);
	char *heap = sbrk(0);
	if (sbrk(64 * PAGE) != heap)
		perror("sbrk");
	printf("brk: %s\n", rights((unsigned long)heap + 32 * PAGE));
	int id = shmget(IPC_PRIVATE, PAGE, 0600);
	printf("shmat: %s, ", rights((unsigned long)shmat(id, 0, 0)));
	printf("read-only %s\n", rights((unsigned long)shmat(id, 0, SHM_RDONLY)));
	shmctl(id, IPC_RMID, 0);
	unsigned char *code = mmap(0, PAGE, PROT_READ | PROT_WRITE, anonymous, -1, 0);
	memcpy(code, "\xb8\x07\x00\x00\x00\xc3", 6);
	if (personality(NOTHING) & READ_IMPLIES_EXEC)
		printf("code in data: %d\n", ((int (*)(void))code)());
}

static void show_layout(void)
{
	static int data;
	int local;
	printf("page 0: %s, data %s, stack %s\n", rights(0), rights((unsigned long)&data), rights((unsigned long)&local));
	char *first = mmap(0, 4 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *second = mmap(0, 4 * PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *huge = mmap(0, 4 << 20, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *low = mmap(0, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	printf("mmap: %lx..., the next is %s, 4 MiB %lx..., libc %lx..., 32 bits %p\n", (unsigned long)first >> 28,
	       second > first ? "above" : "below", (unsigned long)huge >> 28, (unsigned long)&printf >> 28, low);
	printf("4 MiB is %saligned, and %s\n", (unsigned long)huge & 0x1fffff ? "not " : "", huge > second ? "above" : "below");
	void *hint = (void *)0x123450000000;
	printf("hint: %p\n", mmap(hint, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
}

static void *thread(void *unused)
{
	printf("thread: %x\n", personality(NOTHING));
	personality(UNAME26);
	printf("thread: %x\n", personality(NOTHING));
	return unused;
}

static void show_inheritance(void)
{
	pthread_t id;
	fflush(stdout);
	if (!fork()) {
		show_process("child");
		personality(ADDR_NO_RANDOMIZE);
		show_process("child");
		_exit(0);
	}
	wait(0);
	pthread_create(&id, 0, thread, 0);
	pthread_join(id, 0);
	show_process("parent");
}

int main(int argc, char **argv)
{
	if (argc == 2) {
		unsigned long flags = strtoul(argv[1], 0, 16);
		printf("before: %d\n", personality(flags | ADDR_NO_RANDOMIZE) >= 0);
		show_process("set");
		fflush(stdout);
		execl(argv[0], argv[0], "again", argv[1], NULL);
		perror("execl");
		return 1;
	}
	show_process("behind execve");
	show_layout();
	show_memory();
	personality(READ_IMPLIES_EXEC | ADDR_NO_RANDOMIZE);
	show_inheritance();
	show_memory();
	return 0;
}
