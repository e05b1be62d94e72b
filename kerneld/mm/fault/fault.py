"""Page faults: the decision what to do about a missing entry, or one with too few rights.

Owns the decision; the entry itself is set by `mm.pages`. Knows no task and no signal: it returns VM_FAULT_* and the
caller (`kerneld.task.trap`) makes a signal of it. Answers to Linux v6.8 mm/memory.c.

| entry          | VMA           | read                                  | write                                   |
|----------------|---------------|---------------------------------------|-----------------------------------------|
| none           | anonymous     | shared zero page                      | new zeroed frame                        |
| none           | file, private | cached page and those around it       | copy of the cached page                 |
| none           | file, shared  | cached page and those around it       | cached page, writable, noted dirty      |
| present, no RW | private       | –                                     | made writable if exclusive, else copied |
| present, no RW | shared        | –                                     | made writable, noted dirty              |
| swap           | private       | read in, unless the swap cache has it | likewise; if exclusive, writable        |

If there is no leaf table, `kerneld.mm.fault.thp` is asked first: it makes the huge pages. The rows "no RW" are
`kerneld.mm.fault.cow`.
Past the end of a file, or if a page cannot be read: VM_FAULT_SIGBUS. Without a frame: VM_FAULT_OOM. If the page was
read from a disk: VM_FAULT_MAJOR. If a userfaultfd has to give the page: VM_FAULT_RETRY, and `mm.userfault`.

Every allocation may run reclaim. After it, a present entry may be a swap entry or empty, a huge page may be split, and
a frame without references may be in use for something else. So each function here takes a reference of a frame that it
needs after an allocation; the reference keeps the frame and all its entries as they are.
"""

from __future__ import annotations

import errno

from kerneld.errors import KernelBug, SysError
from kerneld.hw.paging import (
    PTE_ACCESSED,
    PTE_MKDIRTY,
    PTE_RW,
    PTE_SOFT_DIRTY,
    PTE_SPECIAL,
    PTE_SWP_EXCLUSIVE,
    PTE_SWP_SOFT_DIRTY,
    make_pte,
    pte_present,
    swp_offset,
)
from kerneld.mm.fault.around import map_cached, map_pages_around
from kerneld.mm.fault.cow import copy_of, do_wp_page
from kerneld.mm.fault.thp import handle_huge_fault
from kerneld.mm.fault.userfaultfd import userfault
from kerneld.mm.fault.vm_fault import VM_FAULT_ERROR, VM_FAULT_MAJOR, VM_FAULT_OOM, VM_FAULT_RETRY, VM_FAULT_SIGBUS
from kerneld.mm.files.dirtying import do_page_mkwrite
from kerneld.mm.files.filemap import FAULT_AROUND_PAGES, READ_AROUND_PAGES, AddressSpace
from kerneld.mm.frames.frames import PG_ANON, PG_ANON_EXCLUSIVE, PG_DIRTY, PG_KSM, ZERO_PFN
from kerneld.mm.frames.huge_frames import HPAGE_PMD_NR
from kerneld.mm.frames.lru import mlock_folio
from kerneld.mm.frames.swap_state import folio_free_swap, read_swap_cache
from kerneld.mm.space.anon_page import new_anon_page, prepare_anon_vma
from kerneld.mm.space.ksm import ksm_must_copy
from kerneld.mm.space.mm import MmStruct, vma_page_prot
from kerneld.mm.space.rmap import anon_vma_root
from kerneld.mm.space.vma import Vma
from kerneld.mm.vm_flags import (
    VM_HUGEPAGE,
    VM_LOCKED,
    VM_RAND_READ,
    VM_SEQ_READ,
    VM_SHARED,
    VM_UFFD_FLAGS,
    VM_WRITE,
)  # fmt: skip
from shared.uapi.page import PAGE_MASK, Pfn, Vaddr


def handle_mm_fault(mm: MmStruct, vma: Vma, address: Vaddr, write: bool) -> int:
    """Settle one fault in a VMA whose rights allow the access; `address` need not be aligned. Returns VM_FAULT_*.

    Source: Linux v6.8 mm/memory.c:handle_mm_fault() and handle_pte_fault().
    """
    vaddr = address & PAGE_MASK
    try:
        if vma.vm_flags & VM_UFFD_FLAGS and (waits := userfault(mm, vma, vaddr, write)) is not None:
            return VM_FAULT_RETRY if waits else VM_FAULT_SIGBUS
        pte = mm.page_table.find_pte(vaddr)
        if pte is None:
            if vma.file is not None:
                return _fault_without_table(mm, vma, vaddr, write)
            if handle_huge_fault(mm, vma, vaddr, write):
                return 0
            pte = mm.page_table.ensure_pte(vaddr)
        entry = mm.frames.ram.words[pte]
        if not entry:
            if vma.file is None:
                return do_anonymous_page(mm, vma, vaddr, pte, write)
            return do_fault(mm, vma, vaddr, pte, write)
        if not pte_present(entry):
            return do_swap_page(mm, vma, vaddr, pte, entry, write)
        if write and not entry & PTE_RW:
            return do_wp_page(mm, vma, vaddr, pte, entry)
        mm.pages.update_pte(pte, vaddr, entry | PTE_ACCESSED | (PTE_MKDIRTY if write else 0))
        return 0
    except SysError as error:
        return VM_FAULT_OOM if error.errno == errno.ENOMEM else VM_FAULT_SIGBUS


def _fault_without_table(mm: MmStruct, vma: Vma, vaddr: Vaddr, write: bool) -> int:
    """Settle a fault for a file's page without a leaf table; free the table made for it if it stays empty.

    Source: Linux v6.8 mm/memory.c:do_fault(), `vmf->prealloc_pte`.
    """
    result = VM_FAULT_ERROR
    try:
        result = do_fault(mm, vma, vaddr, mm.page_table.ensure_pte(vaddr), write)
    finally:
        if result & VM_FAULT_ERROR:
            mm.page_table.free_empty_table(vaddr)
    return result


def do_anonymous_page(mm: MmStruct, vma: Vma, vaddr: Vaddr, pte: int, write: bool) -> int:
    """Settle a fault in anonymous memory: a page of zeros on demand.

    Source: Linux v6.8 mm/memory.c:do_anonymous_page().
    """
    prot = vma_page_prot(vma)
    if not write:
        mm.pages.set_zero_pte(pte, vaddr, make_pte(ZERO_PFN, prot | PTE_SPECIAL))
        return 0
    pfn = new_anon_page(mm, vma, vaddr)
    if vma.vm_flags & VM_WRITE:
        prot |= PTE_RW | PTE_MKDIRTY
    mm.pages.set_pte(pte, vaddr, make_pte(pfn, prot), pfn)
    return 0


def do_fault(mm: MmStruct, vma: Vma, vaddr: Vaddr, pte: int, write: bool) -> int:
    """Settle a fault for a file's page without an entry. Source: Linux v6.8 mm/memory.c:do_fault()."""
    assert vma.file is not None
    mapping = vma.file.mapping
    index = vma.page_index(vaddr)
    major = VM_FAULT_MAJOR if mapping.must_read(index) else 0
    if not write:
        return do_read_fault(mm, vma, vaddr, pte) or major
    if not vma.vm_flags & VM_SHARED:
        # This comes before the file is asked: a fault that ends in SIGBUS leaves an anon_vma, which fork and merges
        # see.
        prepare_anon_vma(mm, vma)
    if index >= mapping.last_index():
        return VM_FAULT_SIGBUS
    prot = vma_page_prot(vma)
    major |= filemap_fault(vma, mapping, index) & VM_FAULT_MAJOR
    # A write maps no pages around it: the pages that it has requested from the disk have come by the next fault.
    mapping.host.fault_is_over()
    source = mapping.ensure_page(index)
    if vma.vm_flags & VM_SHARED:
        do_page_mkwrite(mapping, index)
        mm.frames.get_page(source)
        mm.pages.set_pte(pte, vaddr, make_pte(source, prot | PTE_RW | PTE_MKDIRTY), source)
        mapping.mark_dirty(index, source)
        if vma.vm_flags & VM_LOCKED:
            mlock_folio(mm.frames, source)
        return major
    pfn = copy_of(mm, vma, vaddr, source)
    bits = PTE_RW | PTE_MKDIRTY if vma.vm_flags & VM_WRITE else PTE_MKDIRTY
    mm.pages.set_pte(pte, vaddr, make_pte(pfn, prot | bits), pfn)
    return major


def filemap_fault(vma: Vma, mapping: AddressSpace, index: int) -> int:
    """Bring a file's page into the page cache for a fault. Returns VM_FAULT_MAJOR and VM_FAULT_RETRY.

    A page that is not cached is read in with the pages around it; this counts as major. The pages around it from a disk
    have come if the page itself came from the disk; they are still being read if the page itself is a hole. A page that
    reclaim has tried to write out takes one second try.
    Source: Linux v6.8 mm/filemap.c:filemap_fault(), do_sync_mmap_readahead(), do_async_mmap_readahead().
    """
    assert vma.file is not None
    host = mapping.host
    if not host.has(index):
        if host.read_place(index):
            return VM_FAULT_RETRY
        host.ask_disk(index, *window_to_read(vma, index), near=FAULT_AROUND_PAGES)
        return VM_FAULT_MAJOR | VM_FAULT_RETRY
    if not vma.vm_flags & VM_RAND_READ and host.clear_reclaim(index):
        return VM_FAULT_RETRY
    return 0


def window_to_read(vma: Vma, index: int) -> tuple[int, int]:
    """Return the indexes of a file's pages, [first, last), that are read in for a fault at a page that is not cached.

    Source: Linux v6.8 mm/filemap.c:do_sync_mmap_readahead().
    """
    if vma.vm_flags & VM_HUGEPAGE:
        first = index & -HPAGE_PMD_NR
        return first, first + (HPAGE_PMD_NR if vma.vm_flags & VM_RAND_READ else 2 * HPAGE_PMD_NR)
    if vma.vm_flags & VM_RAND_READ:
        return index, index + 1
    first = index if vma.vm_flags & VM_SEQ_READ else max(index - READ_AROUND_PAGES // 2, 0)
    return first, first + READ_AROUND_PAGES


def do_read_fault(mm: MmStruct, vma: Vma, vaddr: Vaddr, pte: int) -> int:
    """Map a file's page and those around it that lie in the same VMA, the same leaf table and the file.

    The host's page cache serves as the page cache here, so every page of a real file counts as cached, as long as
    memory is not short. A page of shared anonymous memory counts as cached once it has been written or read. The pages
    around are mapped even if the page itself lies past the end of the file, and again after a wait for the page.
    Source: Linux v6.8 mm/memory.c:do_read_fault(), arch/x86/mm/fault.c:do_user_addr_fault().
    """
    assert vma.file is not None
    mapping = vma.file.mapping
    index = vma.page_index(vaddr)
    # A segment of System V has no map_pages: it gets one page (mm/memory.c:should_fault_around(), shm_vm_ops).
    around = not vma.file.is_sysv_shm
    if around:
        map_pages_around(mm, vma, vaddr, pte)
    if mm.frames.ram.words[pte]:
        return 0
    if index >= mapping.last_index():
        return VM_FAULT_SIGBUS
    result = filemap_fault(vma, mapping, index)
    try:
        pfn = mapping.ensure_page(index)
        if around and result & VM_FAULT_RETRY:
            map_pages_around(mm, vma, vaddr, pte)
    finally:
        mapping.host.fault_is_over()
    if not mm.frames.ram.words[pte]:
        map_cached(mm, vma, vaddr, pte, pfn)
    return result & VM_FAULT_MAJOR


def do_swap_page(mm: MmStruct, vma: Vma, vaddr: Vaddr, pte: int, entry: int, write: bool) -> int:
    """Settle a fault for a page in the swap file. Source: Linux v6.8 mm/memory.c:do_swap_page()."""
    frames = mm.frames
    slot = swp_offset(entry)
    if slot >= len(frames.swap.count) or not frames.swap.count_at[slot]:
        raise KernelBug(f"entry {entry:#x} at {vaddr:#x} is neither present nor empty, and names no swap slot in use")
    major = 0
    pfn = frames.swap.cache_at[slot]
    if not pfn:
        pfn = read_swap_cache(frames, slot)
        major = VM_FAULT_MAJOR
    is_merged = False
    if frames.has_merged:
        is_merged = frames.flags_at[pfn] & PG_KSM != 0
        if ksm_must_copy(frames, vma, vaddr, pfn):
            return _swap_in_copy(mm, vma, vaddr, pte, entry, pfn, write) | major
    frames.get_page(pfn)
    frames.swap.swap_free(slot)
    is_sole = write and frames.refcount_at[pfn] == 2 and not is_merged
    if frames.swap.is_full or vma.vm_flags & VM_LOCKED or is_sole:
        folio_free_swap(frames, pfn)
    exclusive = not is_merged and (entry & PTE_SWP_EXCLUSIVE != 0 or frames.refcount_at[pfn] == 1)
    _add_anon_rmap(mm, vma, vaddr, pfn, exclusive)
    prot = _swap_in_prot(vma, entry)
    if write and exclusive:
        prot |= PTE_RW | PTE_MKDIRTY if vma.vm_flags & VM_WRITE else PTE_MKDIRTY
    mm.pages.swap_in_pte(pte, vaddr, make_pte(pfn, prot), pfn)
    if vma.vm_flags & VM_LOCKED:
        mlock_folio(frames, pfn)
    if not write or exclusive:
        return major
    try:
        return do_wp_page(mm, vma, vaddr, pte, make_pte(pfn, prot)) | major
    except SysError:
        # The page was read in; only its copy failed.
        return VM_FAULT_OOM


def _swap_in_prot(vma: Vma, entry: int) -> int:
    """Return the bits of an entry of a VMA for a page from swap: what the swap entry was, soft-dirty, it is too."""
    return vma_page_prot(vma) | (PTE_SOFT_DIRTY if entry & PTE_SWP_SOFT_DIRTY else 0)


def _swap_in_copy(mm: MmStruct, vma: Vma, vaddr: Vaddr, pte: int, entry: int, source: Pfn, write: bool) -> int:
    """Give a swap entry a copy of the frame that the swap cache holds for it; the frame stays there.

    Raises SysError(ENOMEM). Source: Linux v6.8 mm/ksm.c:ksm_might_need_to_copy(), mm/memory.c:do_swap_page().
    """
    pfn = copy_of(mm, vma, vaddr, source)
    mm.frames.flags_at[pfn] |= PG_DIRTY
    mm.frames.vmstat["ksm_swpin_copy"] += 1
    if mm.frames.swap.swap_free(swp_offset(entry)) and not mm.frames.mapcount_at[source]:
        folio_free_swap(mm.frames, source)
    prot = _swap_in_prot(vma, entry)
    if write:
        prot |= PTE_RW | PTE_MKDIRTY if vma.vm_flags & VM_WRITE else PTE_MKDIRTY
    mm.pages.swap_in_pte(pte, vaddr, make_pte(pfn, prot), pfn)
    return 0


def _add_anon_rmap(mm: MmStruct, vma: Vma, vaddr: Vaddr, pfn: Pfn, exclusive: bool) -> None:
    """Make a frame of the swap cache anonymous memory of this VMA alone, or of the root of its family of VMAs.

    Source: Linux v6.8 mm/rmap.c:folio_add_anon_rmap_pte() and __folio_set_anon().
    """
    frames = mm.frames
    if not frames.flags_at[pfn] & PG_ANON:
        prepare_anon_vma(mm, vma)
        assert vma.anon_vma is not None
        frames.mapping_at[pfn] = (vma.anon_vma if exclusive else anon_vma_root(vma.anon_vma)).number
        frames.index_at[pfn] = vma.page_index(vaddr)
    frames.flags_at[pfn] |= PG_ANON | PG_ANON_EXCLUSIVE if exclusive else PG_ANON
