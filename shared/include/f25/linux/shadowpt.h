/*
 * linux/shadowpt.h: the shadow page table, as a program sees it. Fall 2025: calls 467 to 470.
 *
 * For C and C++ on x86-64. The structures, flags and macros are the assignment's; what stands below "Convenience" is
 * ours, and nothing above needs it.
 */
#ifndef _UAPI_LINUX_SHADOWPT_H
#define _UAPI_LINUX_SHADOWPT_H

/* The data structure representing a single entry in the page table */
struct shadow_pte {
	unsigned long vaddr;       /* Virtual address of the base of this page */
	unsigned long pfn;         /* Physical frame number, 0 where no frame is mapped */
	unsigned long state_flags; /* Flags describing the mapping state */
};

/* State flags */
#define SPTE_VADDR_ALLOCATED 1 /* the page is allocated */
#define SPTE_VADDR_ANONYMOUS 2 /* the page is for anonymous memory */
#define SPTE_PTE_MAPPED 4      /* a physical frame of memory is mapped */

/* Macros for testing whether each state flag is set */
#define is_vaddr_allocated(state) (state & SPTE_VADDR_ALLOCATED)
#define is_vaddr_anonymous(state) (state & SPTE_VADDR_ANONYMOUS)
#define is_pte_mapped(state) (state & SPTE_PTE_MAPPED)

/* Max range 2048 4K pages */
#define MAX_SPT_RANGE (0x800000)

/* The data structure representing the full page table */
struct user_shadow_pt {
	unsigned long start_vaddr;  /* first virtual address in the target range */
	unsigned long end_vaddr;    /* last virtual address in the target range + 1 */
	struct shadow_pte *entries; /* array of all page table entries */
};

/* The numbers of the system calls, for syscall(2) */
#ifndef __NR_shadowpt_open
#define __NR_shadowpt_open 467
#endif
#ifndef __NR_shadowpt_close
#define __NR_shadowpt_close 468
#endif
#ifndef __NR_shadowpt_start
#define __NR_shadowpt_start 469
#endif
#ifndef __NR_shadowpt_stop
#define __NR_shadowpt_stop 470
#endif

/*
 * The same numbers under the names that programs have for them, and the size of a page. Constants and not macros: a
 * program may #define any of them itself, before this header or after it, whatever it writes for the value. All are of
 * one enumeration: compilers warn where constants of two are compared.
 */
enum {
#ifndef SYS_shadowpt_open
	SYS_shadowpt_open = __NR_shadowpt_open,
#endif
#ifndef SYS_shadowpt_close
	SYS_shadowpt_close = __NR_shadowpt_close,
#endif
#ifndef SYS_shadowpt_start
	SYS_shadowpt_start = __NR_shadowpt_start,
#endif
#ifndef SYS_shadowpt_stop
	SYS_shadowpt_stop = __NR_shadowpt_stop,
#endif
#ifndef NR_shadowpt_open
	NR_shadowpt_open = __NR_shadowpt_open,
#endif
#ifndef NR_shadowpt_close
	NR_shadowpt_close = __NR_shadowpt_close,
#endif
#ifndef NR_shadowpt_start
	NR_shadowpt_start = __NR_shadowpt_start,
#endif
#ifndef NR_shadowpt_stop
	NR_shadowpt_stop = __NR_shadowpt_stop,
#endif
#ifndef PAGE_SIZE
	PAGE_SIZE = 4096,
#endif
	SPT_PAGE_SHIFT = 12
};

/* Convenience */
#define SPT_PAGE_SIZE 4096UL
/* How many entries the table of [start, end) has, both page-aligned */
#define SPT_NR_ENTRIES(start, end) (((end) - (start)) / SPT_PAGE_SIZE)
/* How much memory `entries` needs for it, in bytes: whole pages */
#define SPT_TABLE_BYTES(start, end) \
	((SPT_NR_ENTRIES(start, end) * sizeof(struct shadow_pte) + SPT_PAGE_SIZE - 1) & ~(SPT_PAGE_SIZE - 1))

#endif /* _UAPI_LINUX_SHADOWPT_H */
