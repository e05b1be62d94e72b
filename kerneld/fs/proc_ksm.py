"""/proc/PID/ksm_stat and ksm_merging_pages: the merged pages of a process.

Answers to Linux v6.8 fs/proc/base.c: proc_pid_ksm_stat(), proc_pid_ksm_merging_pages().
"""

from __future__ import annotations

from kerneld.mm.space.ksm_state import RMAP_ITEM_BYTES
from kerneld.mm.space.mm import MmStruct
from shared.uapi.page import PAGE_SIZE


def show_ksm_merging_pages(mm: MmStruct) -> bytes:
    """Return the number of merged pages of an address space."""
    return f"{mm.ksm_merging_pages}\n".encode()


def show_ksm_stat(mm: MmStruct) -> bytes:
    """Return its counters of KSM, and the bytes that merging saves (Linux: mm/ksm.c:ksm_process_profit())."""
    zeros = mm.rss.ksm_zero_pages
    profit = (mm.ksm_merging_pages + zeros) * PAGE_SIZE - mm.ksm_rmap_items * RMAP_ITEM_BYTES
    return (
        f"ksm_rmap_items {mm.ksm_rmap_items}\n"
        f"ksm_zero_pages {zeros}\n"
        f"ksm_merging_pages {mm.ksm_merging_pages}\n"
        f"ksm_process_profit {profit}\n"
    ).encode()
