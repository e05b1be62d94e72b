/* Does a submission's <linux/shadowpt.h> say what the assignment says? It is compiled, not run: each line is a rule. */
#include <linux/shadowpt.h>
#include <stddef.h>

#define WORD sizeof(unsigned long)

_Static_assert(sizeof(struct shadow_pte) == 3 * WORD, "struct shadow_pte has three words");
_Static_assert(offsetof(struct shadow_pte, vaddr) == 0, "vaddr is the first field of struct shadow_pte");
_Static_assert(offsetof(struct shadow_pte, pfn) == WORD, "pfn is the second field of struct shadow_pte");
_Static_assert(offsetof(struct shadow_pte, state_flags) == 2 * WORD, "state_flags is the third field of struct shadow_pte");
_Static_assert(sizeof(struct user_shadow_pt) == 3 * WORD, "struct user_shadow_pt has three words");
_Static_assert(offsetof(struct user_shadow_pt, start_vaddr) == 0, "start_vaddr is the first field of struct user_shadow_pt");
_Static_assert(offsetof(struct user_shadow_pt, end_vaddr) == WORD, "end_vaddr is the second field of struct user_shadow_pt");
_Static_assert(offsetof(struct user_shadow_pt, entries) == 2 * WORD, "entries is the third field of struct user_shadow_pt");
_Static_assert(SPTE_VADDR_ALLOCATED == 1, "SPTE_VADDR_ALLOCATED is 1");
_Static_assert(SPTE_VADDR_ANONYMOUS == 2, "SPTE_VADDR_ANONYMOUS is 2");
_Static_assert(SPTE_PTE_MAPPED == 4, "SPTE_PTE_MAPPED is 4");
_Static_assert(MAX_SPT_RANGE == 0x800000, "MAX_SPT_RANGE is 0x800000");

/* Not _Static_assert: a macro of a submission may be an inline function. */
int is_right(unsigned long state)
{
	return is_vaddr_allocated(state) && is_vaddr_anonymous(state) && is_pte_mapped(state);
}
