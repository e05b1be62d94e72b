"""The flags of a shadow_pte as numbers, for each layout. The rest of this package writes them without knowing the
layout.

Owns nothing. A flag that a layout does not have is 0, so that one formula computes the flags of every layout.
"""

from __future__ import annotations

from typing import NamedTuple

from shared.uapi.shadowpt import Layout, Spte, SpteF23


class Flags(NamedTuple):
    """The flags of a page that is allocated, in an anonymous VMA, in a writable VMA, mapped, mapped writable."""

    allocated: int
    anonymous: int
    """It includes ALLOCATED, because an anonymous page is always allocated."""
    vaddr_writeable: int
    mapped: int
    pte_writeable: int


F24 = Flags(int(Spte.VADDR_ALLOCATED), int(Spte.VADDR_ALLOCATED | Spte.VADDR_ANONYMOUS), 0, int(Spte.PTE_MAPPED), 0)
F23 = Flags(
    int(SpteF23.VADDR_ALLOCATED),
    int(SpteF23.VADDR_ALLOCATED | SpteF23.VADDR_ANONYMOUS),
    int(SpteF23.VADDR_WRITEABLE),
    int(SpteF23.PTE_MAPPED),
    int(SpteF23.PTE_WRITEABLE),
)
FLAGS = {Layout.F24: F24, Layout.F23: F23}
