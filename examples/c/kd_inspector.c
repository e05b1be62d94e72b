/*
 * An inspector through libkerneld: prints one moment of a table, and what its first mapped page holds.
 *
 *     cc -I shared/include -I shared/c examples/c/kd_inspector.c shared/c/kerneld.c -o kd_inspector
 *     ./kd_inspector PID START END
 */
#define _GNU_SOURCE
#include <kerneld.h>
#include <linux/shadowpt.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static struct kd kd = KD_INIT;
static struct shadow_pte copy[SPT_NR_ENTRIES(0, MAX_SPT_RANGE)];

static int refuse(const char *what)
{
	fprintf(stderr, "kd_inspector: %s: %s\n", what, strerror(errno));
	return 1;
}

static int print_page(unsigned long pfn)
{
	static unsigned char page[SPT_PAGE_SIZE];

	if (kd_shadowpt_page_contents(&kd, pfn, page) < 0)
		return refuse("page_contents");
	printf("contents of pfn %#lx:", pfn);
	for (int i = 0; i < 16; i++)
		printf(" %02x", page[i]);
	printf("\n");
	return 0;
}

int main(int argc, char **argv)
{
	struct user_shadow_pt table;
	unsigned long pages, first_pfn = 0;
	int is_mapped = 0;

	if (argc != 4) {
		fprintf(stderr, "usage: kd_inspector PID START END\n");
		return 2;
	}
	if (kd_connect(&kd, NULL) < 0)
		return refuse("no kerneld");
	table.start_vaddr = strtoul(argv[2], NULL, 16);
	table.end_vaddr = strtoul(argv[3], NULL, 16);
	table.entries = mmap(NULL, SPT_TABLE_BYTES(0, MAX_SPT_RANGE), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			     -1, 0);
	if (table.entries == MAP_FAILED)
		return refuse("mmap");
	if (kd_shadowpt_open(&kd, atoi(argv[1]), &table, KD_LAYOUT_F24, KD_OPEN_HOST) < 0 || kd_shadowpt_start(&kd) < 0)
		return refuse("shadowpt_open");
	pages = SPT_NR_ENTRIES(table.start_vaddr, table.end_vaddr);
	if (kd_snapshot(&kd, copy, pages * sizeof(copy[0])) < 0)
		return refuse("snapshot");
	for (unsigned long i = 0; i < pages; i++) {
		printf("%#lx %#lx %lu\n", copy[i].vaddr, copy[i].pfn, copy[i].state_flags);
		if (!is_mapped && is_pte_mapped(copy[i].state_flags)) {
			is_mapped = 1;
			first_pfn = copy[i].pfn;
		}
	}
	if (is_mapped && print_page(first_pfn) != 0)
		return 1;
	if (kd_shadowpt_close(&kd) < 0)
		return refuse("shadowpt_close");
	kd_disconnect(&kd);
	return 0;
}
