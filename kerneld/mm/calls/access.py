"""Reading and writing another address space, as the kernel does for a program.

Faults pages in as the program's own access would. Knows no task and raises no signal. Answers to Linux v6.8
mm/memory.c:__access_remote_vm() and mm/gup.c: check_vma_flags(), can_follow_write_pte().

| VMA                      | read           | read, forced   | write          | write, forced            |
|--------------------------|----------------|----------------|----------------|--------------------------|
| none                     | EFAULT         | EFAULT         | EFAULT         | EFAULT                   |
| has the right            | done           | done           | done           | done                     |
| lacks it, private        | EFAULT         | done           | EFAULT         | into a private copy      |
| lacks it, shared         | EFAULT         | done           | EFAULT         | EFAULT                   |

`kerneld.mm.fault.foll_touch` marks each accessed page; a write makes the frame dirty.
An access below a VMA that grows down makes the VMA grow. A forced write leaves the entry read-only: the program still
cannot write. If a userfaultfd has to give a page, each function here raises AwaitsPage.
"""

from __future__ import annotations

import errno

import numpy as np

from kerneld.errors import KernelBug, SysError
from kerneld.hw.distinct import distinct
from kerneld.hw.paging import PTE_RW, PTE_SOFT_DIRTY, PTE_SPECIAL, entry_pfn, pte_pfn, pte_present
from kerneld.mm.calls.stack import expand_stack
from kerneld.mm.fault.cow import unshare_page
from kerneld.mm.fault.foll_touch import folio_mark_dirty, touch_entry
from kerneld.mm.fault.populate import fault_one
from kerneld.mm.fault.retry import raise_userfault
from kerneld.mm.fault.vm_fault import VM_FAULT_ERROR, VM_FAULT_OOM
from kerneld.mm.frames.frames import PG_ANON, PG_ANON_EXCLUSIVE
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.userfaultfd import AwaitsPage
from kerneld.mm.space.vma import Vma, vma_soft_dirty_enabled
from kerneld.mm.vm_flags import VM_GROWSDOWN, VM_MAYREAD, VM_MAYWRITE, VM_PFNMAP, VM_READ, VM_SHARED, VM_WRITE
from shared.uapi.page import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, Vaddr

_PATIENCE = 4
"""Maximum number of faults for one page: the page, then its copy. More faults mean a bug of kerneld."""


def read_remote_vm(mm: MmStruct, vaddr: Vaddr, length: int, *, force: bool = False) -> bytes:
    """Return `length` bytes at any address of an address space; `force` reads what the program itself may not.

    Raises SysError(EFAULT) as the table above says and if a file cannot give the page, SysError(ENOMEM) without a
    frame. Source: Linux v6.8 mm/memory.c:__access_remote_vm().
    """
    ram = mm.frames.ram
    parts = []
    while length > 0:
        offset = vaddr & ~PAGE_MASK
        count = min(length, PAGE_SIZE - offset)
        paddr = get_user_page(mm, vaddr & PAGE_MASK, write=False, force=force) + offset
        parts.append(bytes(ram.read(paddr, count)))
        vaddr += count
        length -= count
    return b"".join(parts)


def write_remote_vm(mm: MmStruct, vaddr: Vaddr, data: bytes, *, force: bool = False) -> None:
    """Write bytes at any address of an address space; `force` writes private memory that the program itself may not.

    Raises as `read_remote_vm` does; the bytes before the page that failed have been written.
    Source: Linux v6.8 mm/memory.c:__access_remote_vm() with FOLL_WRITE.
    """
    ram = mm.frames.ram
    view = memoryview(data)
    while view:
        offset = vaddr & ~PAGE_MASK
        count = min(len(view), PAGE_SIZE - offset)
        paddr = get_user_page(mm, vaddr & PAGE_MASK, write=True, force=force) + offset
        ram.write(paddr, view[:count])
        folio_mark_dirty(mm.frames, np.array([paddr >> PAGE_SHIFT]))
        vaddr += count
        view = view[count:]


def pin_user_pages(mm: MmStruct, vaddr: Vaddr, length: int, *, write: bool) -> list[int]:
    """Fault in the pages of [vaddr, vaddr + length) and return their physical addresses, up to the first failure.

    A pinned page stays exclusive to the address space: an anonymous page that other address spaces map too is copied
    first, also for a read. Reclaim skips pinned pages until `unpin_user_pages`. No VMA grows. Raises SysError(EFAULT)
    if the first page cannot be faulted in, SysError(ENOMEM) without a frame.
    Source: Linux v6.8 mm/gup.c:pin_user_pages_remote(), gup_must_unshare().
    """
    pages: list[int] = []
    for page in range(vaddr & PAGE_MASK, vaddr + length, PAGE_SIZE):
        vma = mm.vmas.lookup(page)
        try:
            if vma is None:
                raise SysError(errno.EFAULT)
            _check_vma_flags(vma, write, False)
            paddr = _follow_page(mm, vma, page, write=write, pin=True)
        except SysError:
            if pages:
                break
            raise
        except AwaitsPage:
            # The whole is pinned again when the page is there.
            unpin_user_pages(mm, pages, dirty=False)
            raise
        mm.frames.get_page(paddr >> PAGE_SHIFT)
        pages.append(paddr)
    return pages


def unpin_user_pages(mm: MmStruct, pages: list[int], *, dirty: bool) -> None:
    """Unpin pages that `pin_user_pages` has returned; `dirty` says that they have been written to, or may have been.

    Source: Linux v6.8 mm/gup.c:unpin_user_pages_dirty_lock().
    """
    if dirty:
        folio_mark_dirty(mm.frames, distinct(np.array(pages, dtype=np.int64) >> PAGE_SHIFT))
    for paddr in pages:
        mm.frames.put_page(paddr >> PAGE_SHIFT)


def _must_unshare(mm: MmStruct, entry: int, pfn: int) -> bool:
    """Source: Linux v6.8 mm/gup.c:gup_must_unshare(), for a page that is pinned to be read."""
    return not entry & PTE_RW and mm.frames.flags_at[pfn] & (PG_ANON | PG_ANON_EXCLUSIVE) == PG_ANON


def get_user_page(mm: MmStruct, vaddr: Vaddr, *, write: bool, force: bool) -> int:
    """Return the physical address of a page, faulted in for the access; a VMA grows down to it.

    Raises as `read_remote_vm` does. Source: Linux v6.8 mm/gup.c:get_user_page_vma_remote().
    """
    vma = _find_extend_vma(mm, vaddr)
    _check_vma_flags(vma, write, force)
    return _follow_page(mm, vma, vaddr, write=write, force=force)


def _follow_page(mm: MmStruct, vma: Vma, vaddr: Vaddr, *, write: bool, force: bool = False, pin: bool = False) -> int:
    """Return the physical address of a page of a VMA that allows the access, faulted in or unshared where need be."""
    words = mm.frames.ram.words
    for _ in range(_PATIENCE):
        at = mm.page_table.find_leaf(vaddr)
        entry = words[at] if at is not None else 0
        if at is not None and pte_present(entry) and (not write or _can_follow_write_pte(mm, vma, entry, force)):
            if pin and not write and _must_unshare(mm, entry, entry_pfn(entry, vaddr)):
                unshare_page(mm, vma, vaddr)
                continue
            return touch_entry(mm, at, vaddr, write) << PAGE_SHIFT
        fault = fault_one(mm, vma, vaddr, write)
        if fault & VM_FAULT_ERROR:
            raise SysError(errno.ENOMEM if fault & VM_FAULT_OOM else errno.EFAULT)
        raise_userfault(mm, fault, vaddr)
    raise KernelBug(f"the fault at {vaddr:#x} (write {write}) comes again and again")


def _find_extend_vma(mm: MmStruct, vaddr: Vaddr) -> Vma:
    vma = mm.vmas.find(vaddr)
    if vma is None:
        raise SysError(errno.EFAULT)
    if vma.start > vaddr:
        if not vma.vm_flags & VM_GROWSDOWN:
            raise SysError(errno.EFAULT)
        try:
            expand_stack(mm, vma, vaddr)
        except SysError:
            raise SysError(errno.EFAULT) from None
    return vma


def _check_vma_flags(vma: Vma, write: bool, force: bool) -> None:
    """Raise SysError(EFAULT) where the access is not allowed. Source: Linux v6.8 mm/gup.c:check_vma_flags()."""
    flags = vma.vm_flags
    if write:
        allowed = flags & VM_WRITE or (force and flags & (VM_SHARED | VM_MAYWRITE) == VM_MAYWRITE)
    else:
        allowed = flags & VM_READ or (force and flags & VM_MAYREAD)
    if not allowed or flags & VM_PFNMAP:
        raise SysError(errno.EFAULT)


def _can_follow_write_pte(mm: MmStruct, vma: Vma, entry: int, force: bool) -> bool:
    """Return whether a write may use the frame of an entry: the entry is writable, or the write is forced, the frame is
    exclusive, and no fault has to do more than to copy.

    Source: Linux v6.8 mm/gup.c:can_follow_write_pte(), mm/huge_memory.c:can_follow_write_pmd().
    """
    if entry & PTE_RW:
        return True
    if not force or vma.vm_flags & VM_WRITE or (vma_soft_dirty_enabled(vma) and not entry & PTE_SOFT_DIRTY):
        return False
    return not entry & PTE_SPECIAL and mm.frames.flags_at[pte_pfn(entry)] & PG_ANON_EXCLUSIVE != 0
