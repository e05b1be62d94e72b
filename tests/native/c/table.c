/* The shadow page table's calls, as the assignment has them, by a program inside: its own table, and its child's. */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

struct shadow_pte { uint64_t vaddr, pfn, state_flags; };
struct user_shadow_pt { uint64_t start_vaddr, end_vaddr; struct shadow_pte *entries; };

#define P 4096L
#define PAGES 8

int main(void)
{
	char *window = mmap((void *)0x20000000, PAGES * P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), byte, copy[P];
	struct shadow_pte *entries = mmap(0, P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct user_shadow_pt table = {(uint64_t)window, (uint64_t)window + PAGES * P, entries};
	int down[2], up[2];
	if (pipe(down) || pipe(up))
		return 9;
	pid_t target = fork();
	if (!target) {
		read(down[0], &byte, 1);
		window[P] = 't';
		munmap(window + 2 * P, P);
		write(up[1], "x", 1);
		read(down[0], &byte, 1);
		_exit(0);
	}
	printf("open %ld\n", syscall(462, target, &table));
	printf("again %ld\n", syscall(462, target, &table));
	printf("start %ld\n", syscall(464));
	printf("before %d %d %d\n", (int)entries[0].state_flags, (int)entries[1].state_flags, (int)entries[2].state_flags);
	write(down[1], "x", 1);
	read(up[0], &byte, 1);
	printf("after %d %d %d\n", (int)entries[0].state_flags, (int)entries[1].state_flags, (int)entries[2].state_flags);
	long got = syscall(466, entries[1].pfn, copy);
	printf("contents %ld: %c\n", got, copy[0]);
	printf("no frame %ld\n", syscall(466, 1UL, copy));
	write(down[1], "x", 1);
	wait(0);
	printf("gone %d\n", (int)entries[1].state_flags);
	printf("stop %ld\n", syscall(465));
	printf("close %ld\n", syscall(463));
	printf("empty %d\n", (int)entries[1].vaddr);
	entries[0].vaddr = 1;
	printf("closed %ld\n", syscall(463));
	return 0;
}
