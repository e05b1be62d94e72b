/*
 * linux/shadowpt.h: the shadow page table, as a program sees it. Fall 2023: calls 451 to 453.
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
#define SPTE_VADDR_WRITEABLE 4 /* the page's mapping may be written */
#define SPTE_PTE_MAPPED 8      /* a physical frame of memory is mapped */
#define SPTE_PTE_WRITEABLE 16  /* the mapped frame may be written now, without a fault */

/* Macros for testing whether each state flag is set */
#define is_vaddr_allocated(state) (state & SPTE_VADDR_ALLOCATED)
#define is_vaddr_anonymous(state) (state & SPTE_VADDR_ANONYMOUS)
#define is_vaddr_writeable(state) (state & SPTE_VADDR_WRITEABLE)
#define is_pte_mapped(state) (state & SPTE_PTE_MAPPED)
#define is_pte_writeable(state) (state & SPTE_PTE_WRITEABLE)

/* Max range 2048 4K pages */
#define MAX_SPT_RANGE (0x800000)

/* The data structure representing the full page table */
struct user_shadow_pt {
	unsigned long start_vaddr;  /* first virtual address in the target range */
	unsigned long end_vaddr;    /* last virtual address in the target range + 1 */
	struct shadow_pte *entries; /* array of all page table entries */
};

/* The numbers of the system calls, for syscall(2) */
#ifndef __NR_shadowpt_enable
#define __NR_shadowpt_enable 451
#endif
#ifndef __NR_shadowpt_disable
#define __NR_shadowpt_disable 452
#endif
#ifndef __NR_shadowpt_page_contents
#define __NR_shadowpt_page_contents 453
#endif

/*
 * The same numbers under the names that programs have for them, and the size of a page. Constants and not macros: a
 * program may #define any of them itself, before this header or after it, whatever it writes for the value. All are of
 * one enumeration: compilers warn where constants of two are compared.
 */
enum {
#ifndef SYS_shadowpt_enable
	SYS_shadowpt_enable = __NR_shadowpt_enable,
#endif
#ifndef SYS_shadowpt_disable
	SYS_shadowpt_disable = __NR_shadowpt_disable,
#endif
#ifndef SYS_shadowpt_page_contents
	SYS_shadowpt_page_contents = __NR_shadowpt_page_contents,
#endif
#ifndef NR_shadowpt_enable
	NR_shadowpt_enable = __NR_shadowpt_enable,
#endif
#ifndef NR_shadowpt_disable
	NR_shadowpt_disable = __NR_shadowpt_disable,
#endif
#ifndef NR_shadowpt_page_contents
	NR_shadowpt_page_contents = __NR_shadowpt_page_contents,
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
