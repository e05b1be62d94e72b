"""The known differences of kernels before v6.8, each with the first release that has v6.8's rule. A part of
`kerneld.referee.known`."""

from __future__ import annotations

from kerneld.fs import proc_maps
from kerneld.mm import vm_flags
from kerneld.mm.calls import mmap, move_page_tables, mprotect
from kerneld.mm.space import unmapped_area, vma, vma_merge
from kerneld.referee import earlier_rules, witnesses, witnesses_advice, witnesses_segments
from kerneld.referee.difference import Known, OnTop
from shared.uapi.mman import Map

KNOWN_OF_EARLIER_KERNELS = (
    Known(
        (0, 0),
        "mm/mprotect.c:mprotect_fixup()",
        "Memory that mprotect makes read-only still counts as promised memory (Committed_AS), even if it was never "
        "written.",
        ((mprotect, "may_unaccount", earlier_rules.keeps_its_account),),
        witness=witnesses.mprotect_keeps_the_account,
        before=(6, 7),
    ),
    Known(
        (0, 0),
        "include/linux/mman.h:calc_vm_flag_bits()",
        "MAP_STACK has no effect; in v6.8 it means no huge pages.",
        ((vm_flags, "calc_vm_flag_bits", OnTop(earlier_rules.without_map_stack)),),
        witness=witnesses.map_stack_means_nothing,
        before=(6, 7),
    ),
    Known(
        (0, 0),
        "mm/mmap.c:get_unmapped_area()",
        "No anonymous mapping is aligned to 2 MiB.",
        ((unmapped_area, "_aligned_to_pmd", OnTop(earlier_rules.aligns_no_anonymous_memory)),),
        witness=witnesses.aligns_no_anonymous_memory,
        before=(6, 7),
    ),
    Known(
        (0, 0),
        "mm/huge_memory.c:__thp_get_unmapped_area()",
        "If the search from the top finds an aligned place for a file's mapping of 2 MiB or more, the mapping stays "
        "there.",
        ((unmapped_area, "_aligned_to_pmd", OnTop(earlier_rules.aligns_upwards)),),
        witness=witnesses.aligns_files_upwards,
        before=(6, 8),
    ),
    Known(
        (0, 0),
        "fs/proc/task_mmu.c:show_map_vma()",
        "A mapping that ends at the start of the heap, or begins at its end, is called [heap] in maps.",
        ((proc_maps, "vma_is_initial_heap", earlier_rules.touches_the_heap),),
        witness=witnesses.names_what_touches_the_heap,
        before=(6, 8),
    ),
    Known(
        (0, 0),
        "af8ca1c14906, mm/mremap.c:try_realign_addr()",
        "mremap moves no whole page table whose first entries are empty: a table of the old place stays.",
        ((move_page_tables, "_can_realign", earlier_rules.moves_from_its_start),),
        witness=witnesses.moves_from_its_start,
        before=(6, 7),
    ),
    Known(
        (0, 0),
        "arch/x86/include/uapi/asm/mman.h",
        "MAP_ABOVE4G is an unknown flag: MAP_SHARED_VALIDATE refuses it.",
        ((mmap, "_LEGACY_MAP_MASK", mmap._LEGACY_MAP_MASK & ~Map.ABOVE4G.value),),
        witness=witnesses.knows_no_map_above4g,
        before=(6, 6),
    ),
    Known(
        (0, 0),
        "714965ca8252",
        "Parts of an attach of System V shared memory never merge again.",
        ((vma_merge, "_mergeable", OnTop(earlier_rules.merges_no_attach)),),
        applies=lambda facts: facts.has_own_ipc,
        witness=witnesses_segments.merges_no_parts,
        before=(6, 4),
    ),
    Known(
        (0, 0),
        "8788f6781486",
        "An access through a mapping advised MADV_RANDOM counts as use when the mapping goes. In v6.8 it does not "
        "count, as one through a mapping advised MADV_SEQUENTIAL.",
        ((vma, "vma_has_recency", earlier_rules.has_recency),),
        applies=lambda facts: facts.sees_frames,
        witness=witnesses_advice.random_access_is_use,
        before=(6, 3),
    ),
)
