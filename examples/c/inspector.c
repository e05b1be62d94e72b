/*
 * An inspector as the assignment asks for it: plain system calls, <linux/shadowpt.h>, nothing of kerneld's. Compiles
 * with every semester's header and runs under `kerneld run --abi` of that semester.
 *
 *     kerneld run --header include
 *     cc -I include examples/c/inspector.c -o inspector
 *     kerneld run -- ./inspector PID START END
 *
 * It prints the table once a second until Ctrl+C, and closes it then, in the signal handler. With a fourth argument it
 * prints at each line of its input instead, and ends with it.
 */
#define _GNU_SOURCE
#include <linux/shadowpt.h>

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static long open_table(pid_t target, struct user_shadow_pt *table)
{
#ifdef __NR_shadowpt_enable
	return syscall(__NR_shadowpt_enable, target, table);
#else
	long ret = syscall(__NR_shadowpt_open, target, table);

	return ret < 0 ? ret : syscall(__NR_shadowpt_start);
#endif
}

static long close_table(void)
{
#ifdef __NR_shadowpt_disable
	return syscall(__NR_shadowpt_disable);
#else
	return syscall(__NR_shadowpt_close);
#endif
}

static void on_interrupt(int signo)
{
	(void)signo;
	_exit(close_table() == 0 ? 0 : 1);
}

static void print_entry(const struct shadow_pte *pte)
{
	unsigned long state = pte->state_flags;

	printf("%#lx pfn %#lx%s%s%s", pte->vaddr, pte->pfn, is_vaddr_allocated(state) ? " allocated" : "",
	       is_vaddr_anonymous(state) ? " anonymous" : "", is_pte_mapped(state) ? " mapped" : "");
#ifdef is_vaddr_writeable
	printf("%s%s", is_vaddr_writeable(state) ? " vaddr_writeable" : "", is_pte_writeable(state) ? " pte_writeable" : "");
#endif
	printf("\n");
}

static void print_table(const struct user_shadow_pt *table)
{
	unsigned long pages = SPT_NR_ENTRIES(table->start_vaddr, table->end_vaddr);

	for (unsigned long i = 0; i < pages; i++)
		print_entry(&table->entries[i]);
	printf("---\n");
	fflush(stdout);
}

int main(int argc, char **argv)
{
	struct user_shadow_pt table;
	struct sigaction action;

	if (argc < 4 || argc > 5) {
		fprintf(stderr, "usage: inspector PID START END [lines]\n");
		return 2;
	}
	table.start_vaddr = strtoul(argv[2], NULL, 16);
	table.end_vaddr = strtoul(argv[3], NULL, 16);
	table.entries = mmap(NULL, SPT_TABLE_BYTES(0, MAX_SPT_RANGE), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			     -1, 0);
	if (table.entries == MAP_FAILED) {
		perror("inspector: mmap");
		return 1;
	}
	if (open_table(atoi(argv[1]), &table) < 0) {
		perror("inspector: shadowpt_open");
		return 1;
	}
	memset(&action, 0, sizeof(action));
	action.sa_handler = on_interrupt;
	sigaction(SIGINT, &action, NULL);
	printf("open %#lx %#lx\n", table.start_vaddr, table.end_vaddr);
	for (int c = 0; c != EOF;) {
		print_table(&table);
		if (argc == 4) {
			sleep(1);
			continue;
		}
		do
			c = getchar();
		while (c != '\n' && c != EOF);
	}
	if (close_table() < 0) {
		perror("inspector: shadowpt_close");
		return 1;
	}
	return 0;
}
