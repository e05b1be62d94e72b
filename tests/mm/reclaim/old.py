"""Pages that nobody has used since they were last looked at."""

from __future__ import annotations

from kerneld.hw.paging import PTE_ACCESSED
from kerneld.mm.space.mm import MmStruct
from tests.support.machine import BASE


def make_old(mm: MmStruct, vaddr: int = BASE) -> None:
    """Clear the accessed bit of a page's entry, as a look at who uses it does."""
    pte = mm.page_table.find_pte(vaddr)
    assert pte is not None
    mm.frames.ram.words[pte] &= ~PTE_ACCESSED
