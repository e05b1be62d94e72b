/*
 * What the installed <linux/shadowpt.h> says. This file is compiled apart: if it does not compile with the header, the
 * Makefile compiles it with HEADER_IS_BROKEN, and the checks of the header fail in words.
 */
#include "kit.h"

#if defined(HEADER_IS_BROKEN)
const struct header header = { .is_there = 1, .is_broken = 1 };
#elif !__has_include(<linux/shadowpt.h>)
const struct header header = { .is_there = 0 };
#else
#include <linux/shadowpt.h>

/* For each of the flags of the macros: true with its flag alone, false with all the others alone. */
#define TELLS(macro, flag) (!!macro(flag) && !macro(~0UL & ~(unsigned long)(flag)) && !macro(0UL))

const struct header header = {
	.is_there = 1,
	.pte_bytes = sizeof(struct shadow_pte),
	.pte_offsets = { offsetof(struct shadow_pte, vaddr), offsetof(struct shadow_pte, pfn),
			 offsetof(struct shadow_pte, state_flags) },
	.table_bytes = sizeof(struct user_shadow_pt),
	.table_offsets = { offsetof(struct user_shadow_pt, start_vaddr), offsetof(struct user_shadow_pt, end_vaddr),
			   offsetof(struct user_shadow_pt, entries) },
	.allocated = SPTE_VADDR_ALLOCATED,
	.anonymous = SPTE_VADDR_ANONYMOUS,
	.mapped = SPTE_PTE_MAPPED,
	.max_range = MAX_SPT_RANGE,
	.macros_right = TELLS(is_vaddr_allocated, SPTE_VADDR_ALLOCATED) && TELLS(is_vaddr_anonymous, SPTE_VADDR_ANONYMOUS) &&
			TELLS(is_pte_mapped, SPTE_PTE_MAPPED),
};
#endif
