"""Pages that a native program may take without asking: which they are, and the faults of those that it has taken.

The processor of a native program is a real one, so the program itself can map a page at its first write, if kerneld has
given it a frame. The fault is then booked later, but before anything looks at it. What is booked is what the fault
would have done: the ends of `do_anonymous_page`, `wp_page_copy` and `do_fault`. Linux has nothing equal.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kerneld.hw.paging import PTE_MKDIRTY, PTE_PRESENT, PTE_RW, PTE_SPECIAL, make_pte, pte_pfn
from kerneld.hw.scalars import u64
from kerneld.mm.fault.cow import copy_prot
from kerneld.mm.frames.frames import PG_ANON
from kerneld.mm.space.anon_page import use_given_pages
from kerneld.mm.space.mm import MmStruct, vma_page_prot
from kerneld.mm.space.pagewalk import Leaf
from kerneld.mm.space.rss import Rss
from kerneld.mm.space.vma import Vma
from kerneld.mm.vm_flags import (
    VM_LOCKED_MASK,
    VM_MAYSHARE,
    VM_MERGEABLE,
    VM_PKEY_MASK,
    VM_SHARED,
    VM_UFFD_FLAGS,
    VM_WRITE,
)
from shared.uapi.native import ADVANCE_PAGES_MOST
from shared.uapi.page import PAGE_SHIFT, PMD_SIZE, Pfn, Vaddr

_NEVER = VM_SHARED | VM_MAYSHARE | VM_LOCKED_MASK | VM_UFFD_FLAGS | VM_MERGEABLE | VM_PKEY_MASK
"""Memory whose faults do more, or that others change too."""
_MANY = 8
"""From this number of pages on numpy is quicker than a loop."""
_BITS, _READ_ONLY, _NOTHING = u64(PTE_PRESENT | PTE_RW | PTE_SPECIAL), u64(PTE_PRESENT), u64(0)


def may_be_given(vma: Vma) -> bool:
    """Return whether the first writes to a VMA's pages do nothing but bring them, and nobody else changes the pages."""
    return not vma.vm_flags & _NEVER and vma.vm_flags & VM_WRITE != 0


def find_empty(mm: MmStruct, vma: Vma, vaddr: Vaddr, count: int) -> int:
    """Return how many pages of private anonymous memory from `vaddr` on are empty, at most `count`.

    They follow a page that a fault has filled, and share its leaf table: none of them can become a huge page.
    """
    end = min(vma.end, (vaddr - 1 | PMD_SIZE - 1) + 1, vaddr + (count << PAGE_SHIFT))
    pte = mm.page_table.find_pte(vaddr) if vaddr < end else None
    if pte is None or vma.file is not None:
        return 0
    words = mm.frames.ram.words[pte : pte + (end - vaddr >> PAGE_SHIFT)].tolist()
    return next((number for number, entry in enumerate(words) if entry), len(words))


def window_of(vma: Vma, vaddr: Vaddr) -> tuple[Vaddr, Vaddr]:
    """Return the bounds of the pages around `vaddr` that are looked at together: in one leaf table and in the VMA."""
    first = max(vma.start, vaddr & -(ADVANCE_PAGES_MOST << PAGE_SHIFT))
    return first, min(vma.end, (vaddr | (ADVANCE_PAGES_MOST << PAGE_SHIFT) - 1) + 1)


def find_shared(mm: MmStruct, vma: Vma, start: Vaddr, end: Vaddr) -> npt.NDArray[np.bool_]:
    """Return which pages of [start, end), in a private file mapping, are read-only because they are the file's.

    That is for each page; nothing at all if there is none.
    """
    pte = mm.page_table.find_pte(start)
    if pte is None or vma.file is None:
        return np.zeros(0, dtype=np.bool_)
    entries = mm.frames.ram.words_np[pte : pte + (end - start >> PAGE_SHIFT)]
    is_shared: npt.NDArray[np.bool_] = (entries & _BITS) == _READ_ONLY
    is_shared &= ~mm.frames.has(pte_pfn(np.where(is_shared, entries, _NOTHING)).astype(np.int64), PG_ANON)
    return is_shared


def book_empty(mm: MmStruct, vma: Vma, start: Vaddr, numbers: list[int], pfns: list[Pfn]) -> None:
    """Do what the first writes to empty pages do, with the frames that were given for them.

    The pages have these numbers from `start` on, in one leaf table. Source: Linux v6.8
    mm/memory.c:do_anonymous_page().
    """
    use_given_pages(mm, vma, start, numbers, pfns)
    pte, prot = mm.page_table.ensure_pte(start), vma_page_prot(vma) | PTE_RW | PTE_MKDIRTY
    if len(numbers) < _MANY:
        for number, pfn in zip(numbers, pfns, strict=True):
            mm.pages.set_pte(pte + number, start + (number << PAGE_SHIFT), make_pte(pfn, prot), pfn)
        return
    count = numbers[-1] + 1
    frames, entries = np.array(pfns), np.zeros(count, dtype=np.uint64)
    entries[numbers] = (frames << PAGE_SHIFT).astype(np.uint64) | np.uint64(prot)
    mm.pages.set_ptes(Leaf(start, start + (count << PAGE_SHIFT), pte, pte + count), entries, frames, Rss.ANON)


def book_copies(mm: MmStruct, vma: Vma, start: Vaddr, numbers: list[int], pfns: list[Pfn]) -> list[tuple[Pfn, Vaddr]]:
    """Do what the first writes to a file's pages do, with frames that have the copies.

    Return the frames and addresses of those beyond the end of a file that has been truncated meanwhile: the copy would
    be gone by now. A page that has been reclaimed meanwhile has no entry to replace.
    Source: Linux v6.8 mm/memory.c:wp_page_copy(), do_cow_fault().
    """
    assert vma.file is not None
    last = vma.file.mapping.last_index() - vma.page_index(start)
    gone = [(pfn, start + (number << PAGE_SHIFT)) for number, pfn in zip(numbers, pfns, strict=True) if number >= last]
    if gone:
        pfns = [pfn for number, pfn in zip(numbers, pfns, strict=True) if number < last]
        numbers = [number for number in numbers if number < last]
    use_given_pages(mm, vma, start, numbers, pfns)
    pte, prot, words = mm.page_table.ensure_pte(start), copy_prot(vma), mm.frames.ram.words
    for number, pfn in zip(numbers, pfns, strict=True):
        fill = mm.pages.replace_pte if words[pte + number] else mm.pages.set_pte
        fill(pte + number, start + (number << PAGE_SHIFT), make_pte(pfn, prot), pfn)
    return gone
