/* PR_SET_MDWE: memory that is writable does not become executable. Of a process, its child, its next program. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096
#define SET 65
#define GET 66
#define ANON (MAP_PRIVATE | MAP_ANONYMOUS)
#define RW (PROT_READ | PROT_WRITE)
#define RX (PROT_READ | PROT_EXEC)

static void show(const char *what, long ret)
{
	printf("%s: %ld %d\n", what, ret, ret < 0 ? errno : 0);
	fflush(stdout);
}

static char *map(const char *what, int prot, int flags)
{
	char *at = mmap(0, PAGE, prot, flags, -1, 0);
	show(what, at == MAP_FAILED ? -1 : 0);
	return at;
}

static void show_memory(const char *who)
{
	printf("%s: ", who);
	show("flags", prctl(GET, 0, 0, 0, 0));
	map("rwx", RW | PROT_EXEC, ANON);
	map("shared rwx", RW | PROT_EXEC, MAP_SHARED | MAP_ANONYMOUS);
	map("wx", PROT_WRITE | PROT_EXEC, ANON);
	char *text = map("rx", RX, ANON), *data = map("rw", RW, ANON), *none = map("none", PROT_NONE, ANON);
	show("data to rx", mprotect(data, PAGE, RX));
	show("data to rwx", mprotect(data, PAGE, RW | PROT_EXEC));
	show("data to r", mprotect(data, PAGE, PROT_READ));
	show("r to rx", mprotect(data, PAGE, RX));
	show("none to x", mprotect(none, PAGE, PROT_EXEC));
	show("text to rwx", mprotect(text, PAGE, RW | PROT_EXEC));
	show("text to rx", mprotect(text, PAGE, RX));
	show("text to rw", mprotect(text, PAGE, RW));
	show("and back", mprotect(text, PAGE, RX));
	int id = shmget(IPC_PRIVATE, PAGE, 0700);
	show("shmat", shmat(id, 0, SHM_EXEC) == (void *)-1 ? -1 : 0);
	shmctl(id, IPC_RMID, 0);
}

int main(int argc, char **argv)
{
	unsigned long flags = strtoul(argv[1], 0, 10);
	if (argc == 3) {
		show_memory("next program");
		return 0;
	}
	show("none yet", prctl(GET, 0, 0, 0, 0));
	char *before = map("rwx before", RW | PROT_EXEC, ANON);
	show("unknown flag", prctl(SET, 4, 0, 0, 0));
	show("the second alone", prctl(SET, 2, 0, 0, 0));
	show("an argument too many", prctl(SET, 1, 0, 1, 0));
	show("get with an argument", prctl(GET, 1, 0, 0, 0));
	show("set", prctl(SET, flags, 0, 0, 0));
	show("again", prctl(SET, flags, 0, 0, 0));
	show("others", prctl(SET, flags ^ 2, 0, 0, 0));
	show("clear", prctl(SET, 0, 0, 0, 0));
	show("from before, the same", mprotect(before, PAGE, RW | PROT_EXEC));
	show("from before, rx", mprotect(before, PAGE, RX));
	show_memory("process");
	if (!fork()) {
		show_memory("child");
		execl(argv[0], argv[0], argv[1], "again", NULL);
		_exit(1);
	}
	wait(0);
	return 0;
}
