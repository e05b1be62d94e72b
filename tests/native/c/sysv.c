/* System V shared memory: made, attached, shared with a child, kept without an attach, removed; what is refused. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096

static void result(const char *what, long ret)
{
	printf("%s: %ld %s\n", what, ret < 0 ? ret : 0, ret < 0 ? strerror(errno) : "");
}

static void status(const char *what, int id)
{
	struct shmid_ds ds;
	memset(&ds, 0xff, sizeof ds);
	result(what, shmctl(id, IPC_STAT, &ds));
	printf("  size %zu, %lu attached, mode %o, last %d, maker %d, owner %d, key %#x, changed %d\n", ds.shm_segsz, ds.shm_nattch,
	       ds.shm_perm.mode, ds.shm_lpid == getpid(), ds.shm_cpid == getpid(), ds.shm_perm.uid == getuid(), ds.shm_perm.__key,
	       ds.shm_ctime != 0);
}

static void maps(int id)
{
	char line[256], rights[8], name[64];
	unsigned long low, high, offset, inode;
	FILE *file = fopen("/proc/self/maps", "r");
	while (fgets(line, sizeof line, file))
		if (sscanf(line, "%lx-%lx %7s %lx %*s %lu %63[^\n]", &low, &high, rights, &offset, &inode, name) == 6 && !strncmp(name, "/SYSV", 5))
			printf("  %ld pages %s %#lx %s, its inode is the id: %d\n", (high - low) / PAGE, rights, offset, name, inode == (unsigned long)id);
	fclose(file);
}

static void lives_and_dies(void)
{
	int id = shmget(0x5eed0815, 3 * PAGE + 100, IPC_CREAT | IPC_EXCL | 0640), child;
	struct shmid_ds ds;
	result("shmget", id);
	status("fresh", id);
	char *at = shmat(id, 0, 0);
	at[0] = 'a', at[3 * PAGE + 4000] = 'z';
	char *again = shmat(id, 0, SHM_RDONLY);
	printf("%c %c\n", again[0], again[3 * PAGE + 4000]);
	status("attached twice", id);
	maps(id);
	result("mprotect of a read-only attach", mprotect(again, PAGE, PROT_READ | PROT_WRITE));
	fflush(stdout);
	if (!(child = fork())) {
		at[1] = 'b';
		status("in the child", id);
		fflush(stdout);
		_exit(0);
	}
	waitpid(child, 0, 0);
	printf("%c\n", again[1]);
	munmap(at + PAGE, PAGE);
	status("a page unmapped", id);
	result("shmdt", shmdt(at));
	result("shmdt again", shmdt(at));
	result("shmdt", shmdt(again));
	status("detached", id);
	at = shmat(shmget(0x5eed0815, 0, 0), 0, 0);
	printf("kept: %c %c %c\n", at[0], at[1], at[3 * PAGE + 4000]);
	result("too large", shmget(0x5eed0815, 5 * PAGE, 0));
	result("exclusive", shmget(0x5eed0815, PAGE, IPC_CREAT | IPC_EXCL | 0600));
	shmctl(id, IPC_STAT, &ds);
	ds.shm_perm.mode = 0400;
	result("set", shmctl(id, IPC_SET, &ds));
	result("lock", shmctl(id, SHM_LOCK, 0));
	status("set and locked", id);
	result("remove", shmctl(id, IPC_RMID, 0));
	status("removed", id);
	result("its key", shmget(0x5eed0815, 0, 0));
	char *more = shmat(id, 0, SHM_RDONLY);
	result("attach of a removed one", -(more == (void *)-1));
	printf("still: %c\n", at[0]);
	shmdt(more);
	shmdt(at);
	result("gone", shmctl(id, IPC_STAT, &ds));
}

static void places(void)
{
	int id = shmget(IPC_PRIVATE, 2 * PAGE, 0600);
	char *room = mmap(0, 8 * PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	munmap(room + 4 * PAGE, 4 * PAGE);
	printf("at its place: %d\n", shmat(id, room + 4 * PAGE, 0) == room + 4 * PAGE);
	printf("rounded: %d\n", shmat(id, room + 6 * PAGE + 5, SHM_RND) == room + 6 * PAGE);
	result("unaligned", (long)shmat(id, room + 5, 0));
	result("occupied", (long)shmat(id, room + PAGE, 0));
	result("remap of nothing", (long)shmat(id, 0, SHM_REMAP));
	printf("over it: %d\n", shmat(id, room + PAGE, SHM_REMAP) == room + PAGE);
	result("no id", (long)shmat(-1, 0, 0));
	result("unknown id", (long)shmat(32767 << 15 | 77, 0, 0));
	result("shmdt unaligned", shmdt(room + 1));
	result("shmdt of other memory", shmdt(room));
	result("no size", shmget(IPC_PRIVATE, 0, 0600));
	result("no key", shmget(0x5eed0816, PAGE, 0600));
	result("bad command", shmctl(id, 99, 0));
	result("stat to nowhere", shmctl(id, IPC_STAT, (void *)8));
	result("mremap", -(mremap(room + 4 * PAGE, 2 * PAGE, PAGE, 0) == MAP_FAILED));
	result("shmdt of what is left", shmdt(room + 4 * PAGE));
	result("remove", shmctl(id, IPC_RMID, 0));
	room[6 * PAGE] = 'x';
	printf("shown twice: %c\n", room[PAGE]);
}

int main(void)
{
	setvbuf(stdout, 0, _IOFBF, 1 << 16);
	lives_and_dies();
	places();
	return 0;
}
