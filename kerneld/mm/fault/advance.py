"""Pages that a native program may take without asking: which they are, and the faults of those that it has taken.

The processor of a native program is a real one, so the program itself can map a page at its first write, if kerneld has
given it a frame. The fault is then booked later, but before anything looks at it. What is booked is what the fault
would have done: the ends of `do_anonymous_page`, `wp_page_copy` and `do_fault`. Linux has nothing equal.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kerneld.hw.paging import PTE_PRESENT, PTE_RW, PTE_SPECIAL, make_pte, pte_pfn
from kerneld.hw.scalars import u64
from kerneld.mm.fault.cow import copy_prot
from kerneld.mm.fault.fault import map_anon_page
from kerneld.mm.frames.frames import PG_ANON
from kerneld.mm.space.anon_page import use_given_page
from kerneld.mm.space.mm import MmStruct
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
from shared.uapi.page import PAGE_SHIFT, PMD_SIZE, Pfn, Vaddr

MOST_PAGES = 64
"""The most pages that are found at a time."""
_NEVER = VM_SHARED | VM_MAYSHARE | VM_LOCKED_MASK | VM_UFFD_FLAGS | VM_MERGEABLE | VM_PKEY_MASK
"""Memory whose faults do more, or that others change too."""
_BITS, _READ_ONLY, _NOTHING = u64(PTE_PRESENT | PTE_RW | PTE_SPECIAL), u64(PTE_PRESENT), u64(0)


def find_empty(mm: MmStruct, vma: Vma, vaddr: Vaddr, count: int) -> int:
    """Return how many pages of private anonymous memory from `vaddr` on are empty, at most `count`.

    They follow a page that a fault has filled, and share its leaf table: none of them can become a huge page.
    """
    end = min(vma.end, (vaddr - 1 | PMD_SIZE - 1) + 1, vaddr + (count << PAGE_SHIFT))
    pte = mm.page_table.find_pte(vaddr) if vaddr < end else None
    if pte is None or vma.file is not None or vma.vm_flags & _NEVER or not vma.vm_flags & VM_WRITE:
        return 0
    words = mm.frames.ram.words[pte : pte + (end - vaddr >> PAGE_SHIFT)].tolist()
    return next((number for number, entry in enumerate(words) if entry), len(words))


def find_shared(mm: MmStruct, vma: Vma, vaddr: Vaddr) -> tuple[Vaddr, npt.NDArray[np.bool_]]:
    """Return which pages of a private file mapping around `vaddr` are read-only because they are the file's.

    That is for each page from the first on; no page if there is none.
    """
    first = max(vma.start, vaddr & -(MOST_PAGES << PAGE_SHIFT))
    end = min(vma.end, (vaddr | (MOST_PAGES << PAGE_SHIFT) - 1) + 1)
    pte = mm.page_table.find_pte(first)
    if pte is None or vma.file is None or vma.vm_flags & _NEVER or not vma.vm_flags & VM_WRITE:
        return first, np.zeros(0, dtype=np.bool_)
    entries = mm.frames.ram.words_np[pte : pte + (end - first >> PAGE_SHIFT)]
    is_shared = (entries & _BITS) == _READ_ONLY
    is_shared &= ~mm.frames.has(pte_pfn(np.where(is_shared, entries, _NOTHING)).astype(np.int64), PG_ANON)
    return first, is_shared


def book_empty(mm: MmStruct, vma: Vma, vaddr: Vaddr, pfn: Pfn) -> None:
    """Do what the first write to an empty page does, with a frame that was given for it."""
    use_given_page(mm, vma, vaddr, pfn)
    map_anon_page(mm, vma, vaddr, mm.page_table.ensure_pte(vaddr), pfn)


def book_copy(mm: MmStruct, vma: Vma, vaddr: Vaddr, pfn: Pfn) -> bool:
    """Do what the first write to a file's page does, with a frame that has the copy.

    Return False, and do nothing, if the file has been truncated meanwhile: the copy would be gone by now.
    """
    assert vma.file is not None
    if vma.page_index(vaddr) >= vma.file.mapping.last_index():
        return False
    pte = mm.page_table.ensure_pte(vaddr)
    use_given_page(mm, vma, vaddr, pfn)
    fill = mm.pages.replace_pte if mm.frames.ram.words[pte] else mm.pages.set_pte
    fill(pte, vaddr, make_pte(pfn, copy_prot(vma)), pfn)
    return True
