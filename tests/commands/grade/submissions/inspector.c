/*
 * The inspector of a made-up submission. Without a macro it is right. MISTAKES is a mask of mistakes, FORMAT how it prints.
 */
#define _GNU_SOURCE
#include <linux/shadowpt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { NO_CLOSE, STALE, WRONG_PFN, SWAPPED_FLAGS, NO_FLAGS, FAST, SLOW, SMALL_ENTRIES, NO_USAGE, IGNORES_ERRORS,
       DECIMAL_ARGUMENTS, NO_START, LAST_PAGE_MISSING, IGNORES_CTRL_C, CRASHES_AT_END, BAD_STATUS, ONLY_INDEX };
enum { WORDS, NUMBER, COLUMNS, LETTERS, LINES, DECIMAL, ONLY_ALLOCATED, SENTENCE, SCREEN, STATIC_BUFFER };
#ifndef MISTAKES
#define MISTAKES 0
#endif
#define MAKES(mistake) ((MISTAKES) >> (mistake) & 1)
#ifndef FORMAT
#define FORMAT WORDS
#endif

static volatile sig_atomic_t is_interrupted;

static void on_interrupt(int signo)
{
	(void)signo;
	is_interrupted = 1;
}

static void print_flags(unsigned long state)
{
	int allocated = !!is_vaddr_allocated(state), anonymous = !!is_vaddr_anonymous(state), mapped = !!is_pte_mapped(state);

	if (MAKES(SWAPPED_FLAGS)) {
		int other = allocated;

		allocated = anonymous;
		anonymous = other;
	}
	if (MAKES(NO_FLAGS))
		return;
	switch (FORMAT) {
	case NUMBER:
		printf(" flags 0x%lx", state);
		break;
	case DECIMAL:
		printf(" %lu", state);
		break;
	case COLUMNS:
		printf("  %5d %5d %5d", allocated, anonymous, mapped);
		break;
	case LETTERS:
		printf(" [%c%c%c]", allocated ? 'A' : '-', anonymous ? 'N' : '-', mapped ? 'M' : '-');
		break;
	case LINES:
		printf("   allocated: %s\n   anonymous: %s\n   mapped: %s\n", allocated ? "yes" : "no", anonymous ? "yes" : "no",
		       mapped ? "yes" : "no");
		break;
	case SENTENCE:
		printf(" is %s, %s, %s", allocated ? "allocated" : "unallocated", anonymous ? "anonymous" : "not anonymous",
		       mapped ? "mapped" : "unmapped");
		break;
	default:
		printf("%s%s%s", allocated ? " ALLOCATED" : "", anonymous ? " ANONYMOUS" : "", mapped ? " MAPPED" : "");
	}
}

static void print_entry(unsigned long index, const struct shadow_pte *pte)
{
	unsigned long pfn = MAKES(WRONG_PFN) ? pte->pfn << 12 : pte->pfn;

	if (FORMAT == ONLY_ALLOCATED && !is_vaddr_allocated(pte->state_flags))
		return;
	if (MAKES(ONLY_INDEX))
		printf("page %lu pfn %#lx", index, pfn);
	else if (FORMAT == DECIMAL)
		printf("%lu: %lu %lu", index, pte->vaddr, pfn);
	else if (FORMAT == COLUMNS)
		printf("%016lx  %8lx", pte->vaddr, pfn);
	else if (FORMAT == LINES)
		printf("entry %lu\n   vaddr: 0x%lX\n   pfn: 0x%lX\n", index, pte->vaddr, pfn);
	else if (FORMAT == SENTENCE)
		printf("The page %#lx-%#lx (frame %#lx)", pte->vaddr, pte->vaddr + 4096, pfn);
	else
		printf("[%3lu] vaddr=%#lx pfn=%#lx", index, pte->vaddr, pfn);
	print_flags(pte->state_flags);
	printf("\n");
}

static void print_table(const struct user_shadow_pt *table, const struct shadow_pte *entries)
{
	unsigned long pages = (table->end_vaddr - table->start_vaddr) / 4096;

	if (FORMAT == SCREEN)
		printf("\033[H\033[2J");
	printf("=== %#lx to %#lx ===\n", table->start_vaddr, table->end_vaddr);
	if (FORMAT == COLUMNS)
		printf("%16s  %8s  %5s %5s %5s\n", "VADDR", "PFN", "ALLOC", "ANON", "MAP");
	for (unsigned long i = 0; i < pages - (MAKES(LAST_PAGE_MISSING)); i++)
		print_entry(i, &entries[i]);
	fflush(stdout);
}

static int watch(struct user_shadow_pt *table)
{
	unsigned long bytes = (table->end_vaddr - table->start_vaddr) / 4096 * sizeof(struct shadow_pte);
	struct shadow_pte *copy = malloc(bytes);

	memcpy(copy, table->entries, bytes);
	while (!is_interrupted || MAKES(IGNORES_CTRL_C)) {
		print_table(table, MAKES(STALE) ? copy : table->entries);
		if (!MAKES(FAST))
			sleep(MAKES(SLOW) ? 3 : 1);
	}
	if (syscall(__NR_shadowpt_close) < 0) {
		perror("shadowpt_close");
		return 1;
	}
	if (MAKES(CRASHES_AT_END))
		raise(SIGSEGV);
	return MAKES(BAD_STATUS) ? 7 : 0;
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = on_interrupt };
	struct user_shadow_pt table;
	int base = MAKES(DECIMAL_ARGUMENTS) ? 10 : 16;
	long error;

	if (argc != 4) {
		if (MAKES(NO_USAGE))
			return 0;
		fprintf(stderr, "usage: %s <target_pid> <start_address> <end_address>\n", argv[0]);
		return 1;
	}
	if (FORMAT == STATIC_BUFFER)
		setvbuf(stdout, NULL, _IOFBF, 1 << 16);
	table.start_vaddr = strtoul(argv[2], NULL, base);
	table.end_vaddr = strtoul(argv[3], NULL, base);
	table.entries = mmap(NULL, MAKES(SMALL_ENTRIES) ? 4096 : MAX_SPT_RANGE / 4096 * sizeof(struct shadow_pte),
			     PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (!MAKES(NO_CLOSE))
		sigaction(SIGINT, &action, NULL);
	error = syscall(__NR_shadowpt_open, atoi(argv[1]), &table);
	if (error >= 0 && !MAKES(NO_START))
		error = syscall(__NR_shadowpt_start);
	if (error < 0) {
		perror("inspector");
		return MAKES(IGNORES_ERRORS) ? 0 : 1;
	}
	return watch(&table);
}
