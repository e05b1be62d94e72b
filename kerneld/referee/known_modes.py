"""The known differences that only one mode shows: huge pages or swap. A part of `kerneld.referee.known`."""

from __future__ import annotations

from kerneld.fs import proc_page, proc_pagemap, proc_smaps
from kerneld.mm.calls import madvise_pages
from kerneld.mm.fault import collapse, cow, fault, thp
from kerneld.mm.frames import swap_state
from kerneld.mm.space import locked_pages, split_folio
from kerneld.mm.space.pages import Pages
from kerneld.mm.space.vma_tree import VmaTree
from kerneld.referee import earlier_huge, later_huge, later_mm_ids, later_swap, witnesses_huge, witnesses_swap
from kerneld.referee.difference import Known, OnTop
from kerneld.referee.mode import Mode

KNOWN_OF_MODES = (
    Known(
        (6, 10),
        "dee3d0bef2b0",
        "kpageflags shows the state of a huge page (dirty, referenced, on which list) at each of its frames, not only "
        "at the first.",
        ((proc_page, "words_of_tails", later_huge.words_of_tails),),
        witness=witnesses_huge.shows_its_state_at_each_frame,
        mode=Mode.HUGE,
    ),
    Known(
        (0, 0),
        "624a2c94f5b7 (v6.1), mm/huge_memory.c:__split_huge_pmd_locked()",
        "If an entry of 2 MiB is split, its small entries are clean, and soft-dirty only if it was. In v6.8 they are "
        "dirty if it was, and soft-dirty then.",
        (
            (Pages, "split_huge_pmd", OnTop(earlier_huge.splits_into_clean_entries)),
            (split_folio, "split_folio", OnTop(earlier_huge.keeps_dirty_entries)),
        ),
        witness=witnesses_huge.splits_into_clean_entries,
        before=(6, 4),
        mode=Mode.HUGE,
    ),
    Known(
        (0, 0),
        "8b9c1cc04184",
        "smaps does not count huge pages that mprotect has taken all rights from.",
        ((proc_smaps, "_gather_leaf", OnTop(earlier_huge.passes_over_what_is_inaccessible)),),
        witness=witnesses_huge.counts_nothing_that_is_inaccessible,
        before=(6, 5),
        mode=Mode.HUGE,
    ),
    Known(
        (6, 12),
        "b1f202060afe",
        "When a huge page is split, the shared zero page replaces its pages of zeros.",
        ((split_folio, "split_folio", later_huge.split_folio_to_zero_pages),),
        witness=witnesses_huge.maps_zero_pages_after_a_split,
        mode=Mode.HUGE,
    ),
    Known(
        (6, 18),
        "mm/migrate.c:try_to_map_unused_to_zeropage(), in v6.12.117 at the latest",
        "The entries of that zero page are as soft-dirty as those of the huge page were.",
        ((split_folio, "split_folio", later_huge.split_folio_to_soft_dirty_zero_pages),),
        witness=witnesses_huge.maps_soft_dirty_zero_pages_after_a_split,
        mode=Mode.HUGE,
    ),
    Known(
        (6, 12),
        "mm/migrate.c:remove_migration_pte(), in v6.12.117 at the latest",
        "The pages of a huge page that is split for good are as soft-dirty as they were. In v6.8 they are soft-dirty "
        "if they are dirty.",
        ((split_folio, "split_folio", OnTop(later_huge.keeps_soft_dirty)),),
        witness=witnesses_huge.splits_and_leaves_soft_dirty_bits,
        mode=Mode.HUGE,
    ),
    Known(
        (6, 13),
        "mm/huge_memory.c:do_huge_zero_wp_pmd()",
        "A write to the huge zero page gets a huge page.",
        ((thp, "do_huge_pmd_wp_page", later_huge.do_huge_pmd_wp_page),),
        witness=witnesses_huge.writes_make_the_huge_zero_page_huge,
        mode=Mode.HUGE,
    ),
    Known(
        (0, 0),
        "mm/madvise.c:madvise_cold_or_pageout_pte_range(), madvise_free_pte_range()",
        "Advice for small entries of a huge page asks each page whether it is shared. In v6.8 the first page decides.",
        ((split_folio, "estimated_sharers", earlier_huge.sharers_of_the_page),),
        witness=witnesses_huge.asks_the_page_whether_it_is_shared,
        before=(6, 6),
        mode=Mode.HUGE,
    ),
    Known(
        (6, 10),
        "include/linux/mm.h:folio_likely_mapped_shared(), and mm/madvise.c (v6.9 and v6.10)",
        "A huge page counts as shared if it has a mapping of 2 MiB and another, or more mappings than pages. Else its "
        "first page decides, as in v6.8. Advice for a part of it skips a shared huge page.",
        (
            (split_folio, "estimated_sharers", later_huge.guessed_sharers),
            (madvise_pages, "_before_a_shared_one", later_huge.advised_parts),
        ),
        witness=witnesses_huge.asks_all_mappings_whether_it_is_shared,
        mode=Mode.HUGE,
    ),
    Known(
        (6, 15),
        "1da190f4d0a6, and mm/madvise.c (v6.9 to v6.15)",
        "A huge page counts as shared if more than one address space maps a part of it. Advice for a part of it "
        "skips a shared huge page. A write reuses a page of a huge page that is not shared.",
        (
            (split_folio, "estimated_sharers", later_huge.estimated_sharers),
            (madvise_pages, "_before_a_shared_one", later_huge.advised_parts),
            (cow, "wp_can_reuse_anon", later_huge.wp_can_reuse_anon),
            *later_mm_ids.TRACKING,
        ),
        witness=witnesses_huge.knows_who_shares_it,
        mode=Mode.HUGE,
    ),
    Known(
        (6, 18),
        "mm/khugepaged.c:hpage_collapse_scan_pmd()",
        "MADV_COLLAPSE makes a huge page even if none of its pages is writable.",
        ((collapse, "_may_collapse", later_huge.may_collapse),),
        witness=witnesses_huge.collapses_what_is_read_only,
        mode=Mode.HUGE,
    ),
    Known(
        (6, 11),
        "fs/proc/task_mmu.c:pagemap_pmd_range()",
        "Bit 56 of pagemap is of each page of a huge page by itself. In v6.8, and again in v6.18, the first page "
        "decides for all.",
        ((proc_pagemap, "huge_exclusive", later_huge.huge_exclusive),),
        witness=witnesses_huge.asks_each_page_whether_it_is_exclusive,
        mode=Mode.HUGE,
    ),
    Known(
        (6, 9),
        "10ebac4f95e7",
        "When several small entries of a locked huge page are cleared together, it is unlocked once. In v6.8 each "
        "entry unlocks it.",
        ((locked_pages, "nr_unlocks", later_huge.nr_unlocks),),
        witness=witnesses_huge.unlocks_many_entries_once,
        mode=Mode.HUGE,
    ),
    Known(
        (6, 18),
        "mm/rmap.c:folio_add_anon_rmap_ptes()",
        "A locked huge page stays locked when its entry is split.",
        ((VmaTree, "is_locked", later_huge.stays_locked),),
        witness=witnesses_huge.stays_locked_when_its_entry_is_split,
        mode=Mode.HUGE,
    ),
    Known(
        (6, 11),
        "c18160dba5ff",
        "A page that is swapped in for a read becomes writable without another fault, if no other process has it.",
        ((fault, "do_swap_page", later_swap.do_swap_page),),
        witness=witnesses_swap.reads_in_what_may_be_written,
        mode=Mode.SWAP,
    ),
    Known(
        (0, 0),
        "zswap, mm/zswap.c:zswap_load()",
        "A page that is swapped in is dirty, unless it is all zeros: zswap drops a page when it is read.",
        ((swap_state, "read_swap_cache", later_swap.read_swap_cache),),
        witness=witnesses_swap.brings_pages_in_dirty,
        mode=Mode.SWAP,
    ),
)
