/* Memory policies on a machine with one node: what is refused, what is told, and which mappings stay apart. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096UL
enum { DEFAULT, PREFERRED, BIND, INTERLEAVE, LOCAL, MANY };
#define STATIC (1 << 15)
#define RELATIVE (1 << 14)
#define BALANCING (1 << 13)

static unsigned long none[16], first[16] = {1}, second[16] = {2}, both[16] = {3}, far[600];
static char *memory;

static void show(const char *what, long ret)
{
	printf("%s: %s\n", what, ret ? strerror(errno) : "done");
}

static void tell(const char *what, void *address, unsigned long flags)
{
	int policy = -1;
	unsigned long nodes[16];
	memset(nodes, 0xff, sizeof nodes);
	long ret = syscall(SYS_get_mempolicy, &policy, nodes, 1024, address, flags);
	printf("%s: %s, %#x %#lx %#lx\n", what, ret ? strerror(errno) : "done", policy, nodes[0], nodes[15]);
}

static long set(int mode, void *nodes, unsigned long maxnode)
{
	return syscall(SYS_set_mempolicy, mode, nodes, maxnode);
}

static long bind_(unsigned long page, unsigned long pages, int mode, void *nodes, unsigned flags)
{
	return syscall(SYS_mbind, memory + page * PAGE, pages * PAGE, mode, nodes, nodes ? 1024 : 0, flags);
}

static void count(const char *what)
{
	char line[512];
	int mappings = 0;
	FILE *maps = fopen("/proc/self/maps", "r");
	while (fgets(line, sizeof line, maps)) {
		unsigned long start, end;
		if (sscanf(line, "%lx-%lx", &start, &end) == 2)
			mappings += start >= (unsigned long)memory && end <= (unsigned long)memory + 16 * PAGE;
	}
	fclose(maps);
	printf("%s: %d mappings\n", what, mappings);
}

static void of_threads(void)
{
	int modes[] = {DEFAULT, PREFERRED, BIND, INTERLEAVE, LOCAL, MANY, 17, -1, BIND | STATIC, BIND | RELATIVE, BIND | STATIC | RELATIVE, BIND | BALANCING,
		       INTERLEAVE | BALANCING, PREFERRED | STATIC, LOCAL | STATIC, DEFAULT | STATIC};
	void *masks[] = {0, none, first, second, both};
	for (unsigned i = 0; i < sizeof modes / sizeof *modes; i++)
		for (unsigned j = 0; j < sizeof masks / sizeof *masks; j++) {
			char what[32];
			sprintf(what, "%#x with %u", modes[i], j);
			show(what, set(modes[i], masks[j], 1024));
			tell(what, 0, 0);
		}
	far[1023 / 64] = 1UL << 63;
	show("node 1023", set(BIND, far, 1025));
	far[1023 / 64] = 0;
	far[40] = 1;
	show("node 2560", set(BIND, far, 4000));
	far[0] = 1;
	show("node 2560 is not among them", set(BIND, far, 2000));
	show("too many nodes", set(BIND, far, 40000));
	show("no memory", set(BIND, (void *)8, 64));
	show("a bad mode before that", set(99, (void *)8, 64));
	show("one bit", set(BIND, first, 2));
	show("no bit", set(BIND, first, 1));
	tell("both", memory, 4 | 2);
	tell("unknown flags", 0, 8);
	tell("allowed", 0, 4);
	tell("an address without the flag", memory, 0);
	tell("a node without an address", 0, 1);
	set(INTERLEAVE, first, 64);
	tell("the next node", 0, 1);
	show("no room for nodes", syscall(SYS_get_mempolicy, 0, none, 0, 0, 0));
	show("nowhere", syscall(SYS_get_mempolicy, 8, 0, 0, 0, 0));
	show("nodes nowhere", syscall(SYS_get_mempolicy, 0, 8, 64, 0, 0));
	if (!fork()) {
		tell("a child", 0, 0);
		fflush(stdout);
		_exit(0);
	}
	wait(0);
	set(DEFAULT, 0, 0);
}

int main(void)
{
	setvbuf(stdout, 0, _IOLBF, 0);
	char *all = mmap(0, 20 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memory = all + 2 * PAGE;
	mprotect(memory, 16 * PAGE, PROT_READ | PROT_WRITE);
	memory[0] = 1;
	of_threads();
	count("at first");
	show("four pages", bind_(4, 4, BIND, first, 0));
	count("four pages");
	tell("of the page", memory + 5 * PAGE, 2);
	tell("beside it", memory + 3 * PAGE, 2);
	tell("its node", memory + 5 * PAGE, 3);
	tell("nothing there", (void *)8, 2);
	mprotect(memory + 4 * PAGE, 2 * PAGE, PROT_READ);
	count("read-only");
	mprotect(memory + 4 * PAGE, 2 * PAGE, PROT_READ | PROT_WRITE);
	count("as before");
	show("strict, and moved", bind_(2, 8, INTERLEAVE, first, 1 | 2));
	count("wider");
	show("moved for all", bind_(2, 2, BIND | STATIC, both, 4));
	tell("the caller's nodes", memory + 2 * PAGE, 2);
	show("unknown flags", bind_(2, 2, BIND, first, 8));
	show("no pages", bind_(2, 0, BIND, second, 0));
	show("no such node", bind_(2, 2, BIND, second, 0));
	show("not aligned", syscall(SYS_mbind, memory + 1, PAGE, DEFAULT, 0, 0, 0));
	show("wraps", syscall(SYS_mbind, memory, ~0UL, DEFAULT, 0, 0, 0));
	if (!fork()) {
		tell("a child's", memory + 5 * PAGE, 2);
		_exit(0);
	}
	wait(0);
	char *moved = mremap(memory + 4 * PAGE, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, memory + 12 * PAGE);
	tell("moved", moved, 2);
	show("over a hole", bind_(2, 8, DEFAULT, 0, 0));
	mmap(memory + 4 * PAGE, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	tell("a new mapping", memory + 4 * PAGE, 2);
	show("all", bind_(0, 16, DEFAULT, 0, 0));
	tell("all", memory + 5 * PAGE, 2);
	return 0;
}
