"""Foreign referees of the page tables of processes: 4,000 addresses of each address space, three accesses each."""

from __future__ import annotations

import pytest

from kerneld.hw.paging import PTE_NX, PTE_PRESENT, PTE_RW, PTE_USER, pte_pfn
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.vm_flags import VM_EXEC, VM_WRITE
from shared.uapi.page import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE
from tests.foreign import huge_and_swapped, states
from tests.foreign.agreement import Verdicts, choose_addresses, judge
from tests.foreign.states import State
from tests.foreign.walker import Walker
from tests.foreign.world import RAM_BYTES, mm_of, new_world

STATES = [*states.STATES, *huge_and_swapped.STATES]
ADDRESSES = 4000
"""How many addresses of each address space are judged."""


def test_there_are_a_hundred_thousand_addresses() -> None:
    assert len(STATES) * ADDRESSES >= 100_000


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
def test_all_agree(state: State) -> None:
    with new_world() as world:
        for thread in state(world):
            mm = mm_of(thread)
            addresses = choose_addresses([(vma.start, vma.end) for vma in mm.vmas], ADDRESSES)
            assert len(addresses) >= ADDRESSES
            with world.ram(thread) as (fd, cr3):
                verdicts = judge(fd, RAM_BYTES, cr3, addresses)
                whole = Walker(fd, RAM_BYTES, cr3).mapped_pages()
            assert whole == present_pages(mm)
            assert verdicts.tolist() == [list(entry_says(mm, vaddr)) for vaddr in addresses]
            check_no_right_beyond_the_vma(mm, addresses, verdicts)


def present_pages(mm: MmStruct) -> dict[int, int]:
    """Return every page that the processor may find, with its physical address, as the kernel's own view has it."""
    pages = {}
    for vma in mm.vmas:
        for number, entry in enumerate(mm.page_table.walk.entries(vma.start, vma.end).tolist()):
            if entry & PTE_PRESENT:
                pages[vma.start + number * PAGE_SIZE] = pte_pfn(entry) << PAGE_SHIFT
    return pages


def entry_says(mm: MmStruct, vaddr: int) -> tuple[int, int, int]:
    """Return what `translate` must say of a read, a write and a fetch, from the leaf entry alone."""
    page = vaddr & PAGE_MASK
    entry = int(mm.page_table.walk.entries(page, page + PAGE_SIZE)[0])
    if not entry & PTE_PRESENT:
        return ~0x4, ~0x6, ~0x14
    assert entry & PTE_USER
    paddr = pte_pfn(entry) << PAGE_SHIFT | vaddr & ~PAGE_MASK
    return paddr, paddr if entry & PTE_RW else ~0x7, ~0x15 if entry & PTE_NX else paddr


def check_no_right_beyond_the_vma(mm: MmStruct, addresses: list[int], verdicts: Verdicts) -> None:
    """What all found allowed, a VMA allows: the processor never does more than mmap and mprotect said."""
    for vaddr, (read, write, fetch) in zip(addresses, (verdicts >= 0).tolist(), strict=True):
        vma = mm.vmas.lookup(vaddr)
        flags = vma.vm_flags if vma is not None else 0
        assert vma is not None or not read
        assert not write or flags & VM_WRITE
        assert not fetch or flags & VM_EXEC
