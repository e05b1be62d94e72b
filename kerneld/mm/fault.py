"""Page faults: what a missing or too weak entry becomes.

Owns the decision; the entry itself is set by `MmStruct`. Knows no task and no signal: it returns VM_FAULT_* and the
caller (`kerneld.task.trap`) makes a signal of it. Answers to Linux v6.8 mm/memory.c.

| entry          | VMA           | read                                  | write                                   |
|----------------|---------------|---------------------------------------|-----------------------------------------|
| none           | anonymous     | shared zero page                      | new zeroed frame                        |
| none           | file, private | cached page and those around it       | copy of the cached page                 |
| none           | file, shared  | cached page and those around it       | cached page, writable, noted dirty      |
| present, no RW | private       | –                                     | reuse where it is ours alone, else copy |
| present, no RW | shared        | –                                     | made writable, noted dirty              |

Where no leaf table is, `kerneld.mm.thp` is asked first: huge pages are its business.
Past the end of a file: VM_FAULT_SIGBUS. Without a frame: VM_FAULT_OOM.
"""

from __future__ import annotations

import errno

from kerneld.errors import KernelBug, SysError
from kerneld.hw.paging import (
    PTE_ACCESSED,
    PTE_DIRTY,
    PTE_PFN_MASK,
    PTE_RW,
    PTE_SPECIAL,
    make_pte,
    pte_present,
)
from kerneld.mm.anon_page import new_anon_page, prepare_anon_vma
from kerneld.mm.filemap import FAULT_AROUND_PAGES, READ_AROUND_PAGES, AddressSpace
from kerneld.mm.frames import PG_ANON, PG_ANON_EXCLUSIVE, ZERO_PFN
from kerneld.mm.mm import MmStruct, vma_page_prot
from kerneld.mm.thp import handle_huge_fault, unshare_huge_page
from kerneld.mm.vm_flags import VM_MAYSHARE, VM_RAND_READ, VM_SHARED, VM_WRITE
from kerneld.mm.vma import Vma
from shared.uapi.page import PAGE_MASK, PAGE_SHIFT, Pfn, Vaddr

VM_FAULT_OOM, VM_FAULT_SIGBUS, VM_FAULT_MAJOR, VM_FAULT_SIGSEGV = 0x1, 0x2, 0x4, 0x40
VM_FAULT_ERROR = VM_FAULT_OOM | VM_FAULT_SIGBUS | VM_FAULT_SIGSEGV
"""Results of a fault: Linux v6.8 include/linux/mm_types.h vm_fault_reason; 0 is a minor fault that was settled."""


def handle_mm_fault(mm: MmStruct, vma: Vma, address: Vaddr, write: bool) -> int:
    """Settle one fault in a VMA whose rights allow the access; `address` need not be aligned. Returns VM_FAULT_*.

    Source: Linux v6.8 mm/memory.c:handle_mm_fault() and handle_pte_fault().
    """
    vaddr = address & PAGE_MASK
    try:
        pte = mm.page_table.find_pte(vaddr)
        if pte is None:
            if vma.file is None and handle_huge_fault(mm, vma, vaddr, write):
                return 0
            pte = mm.page_table.ensure_pte(vaddr)
        entry = mm.frames.ram.words[pte]
        if not entry:
            if vma.file is None:
                return do_anonymous_page(mm, vma, vaddr, pte, write)
            return do_fault(mm, vma, vaddr, pte, write)
        if not pte_present(entry):
            raise KernelBug(f"entry {entry:#x} at {vaddr:#x} is neither present nor empty")
        if write and not entry & PTE_RW:
            return do_wp_page(mm, vma, vaddr, pte, entry)
        mm.update_pte(pte, vaddr, entry | PTE_ACCESSED | (PTE_DIRTY if write else 0))
        return 0
    except SysError as error:
        return VM_FAULT_OOM if error.errno == errno.ENOMEM else VM_FAULT_SIGBUS


def do_anonymous_page(mm: MmStruct, vma: Vma, vaddr: Vaddr, pte: int, write: bool) -> int:
    """Demand zero. Source: Linux v6.8 mm/memory.c:do_anonymous_page()."""
    prot = vma_page_prot(vma)
    if not write:
        mm.map_zero_page(pte, vaddr, make_pte(ZERO_PFN, prot | PTE_SPECIAL))
        return 0
    pfn = new_anon_page(mm, vma, vaddr)
    if vma.vm_flags & VM_WRITE:
        prot |= PTE_RW | PTE_DIRTY
    mm.map_page(pte, vaddr, make_pte(pfn, prot), pfn)
    return 0


def do_fault(mm: MmStruct, vma: Vma, vaddr: Vaddr, pte: int, write: bool) -> int:
    """A file's page that has no entry. Source: Linux v6.8 mm/memory.c:do_fault()."""
    assert vma.file is not None
    mapping = vma.file.mapping
    index = vma.page_index(vaddr)
    if not write:
        return do_read_fault(mm, vma, vaddr, pte)
    if not vma.vm_flags & VM_SHARED:
        # Before the file is asked: a fault that ends in SIGBUS leaves an anon_vma behind, which fork and merges see.
        prepare_anon_vma(mm, vma)
    if index >= mapping.last_index():
        return VM_FAULT_SIGBUS
    prot = vma_page_prot(vma)
    result = filemap_fault(vma, mapping, index)
    if vma.vm_flags & VM_SHARED:
        pfn = mapping.ensure_page(index)
        mm.frames.refcount_at[pfn] += 1
        mm.map_page(pte, vaddr, make_pte(pfn, prot | PTE_RW | PTE_DIRTY), pfn)
        mapping.mark_dirty(index, pfn)
        return result
    source = mapping.ensure_page(index)
    pfn = new_anon_page(mm, vma, vaddr, zero=False)
    mm.frames.ram.copy_page(pfn, source)
    bits = PTE_RW | PTE_DIRTY if vma.vm_flags & VM_WRITE else PTE_DIRTY
    mm.map_page(pte, vaddr, make_pte(pfn, prot | bits), pfn)
    return result


def filemap_fault(vma: Vma, mapping: AddressSpace, index: int) -> int:
    """The fault of a file's page itself, as the host's cache would take it. Returns 0 or VM_FAULT_MAJOR.

    A page that is not cached is read in with those around it, which counts as major; of a file in memory a hole is
    filled at once. One that reclaim has tried to write out takes a second try, no more.
    Source: Linux v6.8 mm/filemap.c:filemap_fault(), do_sync_mmap_readahead(), do_async_mmap_readahead().
    """
    assert vma.file is not None
    if index in mapping.uncached:
        around = 0 if vma.file.in_memory or vma.vm_flags & VM_RAND_READ else READ_AROUND_PAGES // 2
        mapping.uncached.difference_update(range(index - around, index + max(around, 1)))
        return 0 if vma.file.in_memory else VM_FAULT_MAJOR
    if not vma.vm_flags & VM_RAND_READ:
        mapping.reclaim.discard(index)
    return 0


def do_read_fault(mm: MmStruct, vma: Vma, vaddr: Vaddr, pte: int) -> int:
    """Map a file's page and those around it that lie in the same VMA, the same leaf table and the file.

    The host's page cache is ours, so every page of a real file counts as cached, as long as frames are left for it; of
    shared anonymous memory only what has been written or read before. Those around it are mapped also where the page
    itself lies past the end of the file. Source: Linux v6.8 mm/memory.c:do_read_fault(), do_fault_around().
    """
    assert vma.file is not None
    mapping = vma.file.mapping
    index = vma.page_index(vaddr)
    offset = vaddr >> PAGE_SHIFT & 511
    first = max(offset & -FAULT_AROUND_PAGES, offset - min(offset, index - vma.pgoff))
    last = min(first + FAULT_AROUND_PAGES, 512, offset + ((vma.end - vaddr) >> PAGE_SHIFT))
    low = index - (offset - first)
    size = mapping.last_index()
    high = min(low + last - first, size)
    mapping.read_around(index, low, high)
    pfns = [mapping.find_page(i) for i in range(low, high)]
    unmapped = mapping.reclaim | mapping.uncached if mapping.reclaim or mapping.uncached else ()
    result = filemap_fault(vma, mapping, index) if index < size else VM_FAULT_SIGBUS
    prot = vma_page_prot(vma)
    words = mm.frames.ram.words
    for i, pfn in enumerate(pfns):
        slot = pte - offset + first + i
        if pfn is not None and not words[slot] and (low + i == index or low + i not in unmapped):
            mm.frames.refcount_at[pfn] += 1
            mm.map_page(slot, vaddr + ((first + i - offset) << PAGE_SHIFT), make_pte(pfn, prot), pfn)
    return result


def do_wp_page(mm: MmStruct, vma: Vma, vaddr: Vaddr, pte: int, entry: int) -> int:
    """A write to a present entry without RW. Source: Linux v6.8 mm/memory.c:do_wp_page()."""
    pfn = (entry & PTE_PFN_MASK) >> PAGE_SHIFT
    frames = mm.frames
    if vma.vm_flags & (VM_SHARED | VM_MAYSHARE):
        return wp_page_shared(mm, vma, vaddr, pte, entry)
    if entry & PTE_SPECIAL:
        return wp_page_copy(mm, vma, vaddr, pte, ZERO_PFN)
    if frames.flags_at[pfn] & PG_ANON and wp_can_reuse_anon(mm, vma, pfn):
        wp_page_reuse(mm, vma, vaddr, pte, entry)
        return 0
    return wp_page_copy(mm, vma, vaddr, pte, pfn)


def wp_can_reuse_anon(mm: MmStruct, vma: Vma, pfn: Pfn) -> bool:
    """Tell whether an anonymous frame is this address space's alone; one whose other owners have gone becomes so.

    Source: Linux v6.8 mm/memory.c:wp_can_reuse_anon_folio(): the frame moves to this VMA's anon_vma.
    """
    frames = mm.frames
    flags = frames.flags_at[pfn]
    if not flags & PG_ANON_EXCLUSIVE and frames.refcount_at[pfn] == 1:
        frames.flags_at[pfn] = flags = flags | PG_ANON_EXCLUSIVE
        frames.mapping_at[pfn] = prepare_anon_vma(mm, vma)
    return flags & PG_ANON_EXCLUSIVE != 0


def unshare_page(mm: MmStruct, vma: Vma, vaddr: Vaddr) -> Pfn:
    """Make the anonymous page that an entry maps this address space's alone, still not writable, and return its frame.

    Raises SysError(ENOMEM). Source: Linux v6.8 mm/memory.c:do_wp_page() with FAULT_FLAG_UNSHARE.
    """
    huge = unshare_huge_page(mm, vma, vaddr)
    if huge is not None:
        return huge
    pte = mm.page_table.ensure_pte(vaddr)
    pfn = (mm.frames.ram.words[pte] & PTE_PFN_MASK) >> PAGE_SHIFT
    if wp_can_reuse_anon(mm, vma, pfn):
        return pfn
    new = new_anon_page(mm, vma, vaddr, zero=False)
    mm.frames.ram.copy_page(new, pfn)
    mm.replace_page(pte, vaddr, make_pte(new, vma_page_prot(vma)), new)
    return new


def wp_page_reuse(mm: MmStruct, vma: Vma, vaddr: Vaddr, pte: int, entry: int) -> None:
    """Make an entry writable in place. Source: Linux v6.8 mm/memory.c:wp_page_reuse()."""
    bits = PTE_ACCESSED | PTE_DIRTY
    if vma.vm_flags & VM_WRITE:
        bits |= PTE_RW
    mm.update_pte(pte, vaddr, entry | bits)


def wp_page_shared(mm: MmStruct, vma: Vma, vaddr: Vaddr, pte: int, entry: int) -> int:
    """The first write to a shared page since it was clean. Source: Linux v6.8 mm/memory.c:wp_page_shared()."""
    assert vma.file is not None
    index = vma.page_index(vaddr)
    if index >= vma.file.mapping.last_index():
        return VM_FAULT_SIGBUS
    wp_page_reuse(mm, vma, vaddr, pte, entry)
    vma.file.mapping.mark_dirty(index, (entry & PTE_PFN_MASK) >> PAGE_SHIFT)
    return 0


def wp_page_copy(mm: MmStruct, vma: Vma, vaddr: Vaddr, pte: int, source: Pfn) -> int:
    """Give the writer a frame of its own. Source: Linux v6.8 mm/memory.c:wp_page_copy()."""
    pfn = new_anon_page(mm, vma, vaddr, zero=source == ZERO_PFN)
    if source != ZERO_PFN:
        mm.frames.ram.copy_page(pfn, source)
    prot = vma_page_prot(vma) | PTE_DIRTY
    if vma.vm_flags & VM_WRITE:
        prot |= PTE_RW
    mm.replace_page(pte, vaddr, make_pte(pfn, prot), pfn)
    return 0
