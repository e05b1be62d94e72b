"""The structures and flags of the shadow page table, as linux/shadowpt.h has them for a C program."""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag

from shared.uapi.page import PAGE_SHIFT, page_align

MAX_SPT_RANGE = 0x80_0000
"""Longest range of one table, in bytes: 2,048 pages."""
SHADOW_PTE = struct.Struct("<QQQ")
"""struct shadow_pte: vaddr, pfn, state_flags. 24 bytes, three aligned 64-bit words."""
USER_SHADOW_PT = struct.Struct("<QQQ")
"""struct user_shadow_pt: start_vaddr, end_vaddr, entries."""


class Layout(IntEnum):
    """The third argument of shadowpt_open: the semester whose flags the table has, fall 2024 (and 2025) or fall 2023.

    The first part of fall 2025 has another table, with the addresses of page faults.
    """

    F24 = 0
    F23 = 23
    F25_PART1 = 251


ATTACH_HOST = 1
"""Fourth argument of attach: this program uses its real memory. A shadow page table of it shows its real pages."""
OPEN_HOST = 1
"""Fourth argument of shadowpt_open: the target may also be a real process of the host that is not attached."""


class Spte(IntFlag):
    """state_flags of a shadow_pte."""

    VADDR_ALLOCATED = 1
    VADDR_ANONYMOUS = 2
    PTE_MAPPED = 4


class SpteF23(IntFlag):
    """state_flags of a shadow_pte of Layout.F23."""

    VADDR_ALLOCATED = 1
    VADDR_ANONYMOUS = 2
    VADDR_WRITEABLE = 4
    PTE_MAPPED = 8
    PTE_WRITEABLE = 16


def fault_index(vaddr: int, size_bytes: int) -> int:
    """Return the index of a fault at `vaddr` in a table of page faults of `size_bytes`."""
    return vaddr % size_bytes // 8


def table_bytes(start: int, end: int) -> int:
    """Size of the table of the page-aligned range [start, end), rounded up to whole pages, in bytes."""
    return page_align(((end - start) >> PAGE_SHIFT) * SHADOW_PTE.size)
