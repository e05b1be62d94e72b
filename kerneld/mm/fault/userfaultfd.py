"""The faults that a userfaultfd settles: which page is missing, and who is asked for it.

Knows no thread: the access itself waits (`kerneld.mm.space.userfaultfd`). Answers to Linux v6.8
fs/userfaultfd.c:handle_userfault() and its callers in mm/memory.c, mm/huge_memory.c and mm/shmem.c.
"""

from __future__ import annotations

from kerneld.mm.fault.around import map_pages_around
from kerneld.mm.fault.thp import thp_vma_allowable, thp_vma_suitable
from kerneld.mm.space.anon_page import prepare_anon_vma
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.userfaultfd import Userfault
from kerneld.mm.space.vma import Vma
from kerneld.mm.vm_flags import VM_SHARED
from shared.uapi.page import Vaddr
from shared.uapi.userfaultfd import Feature, PagefaultFlag


def userfault(mm: MmStruct, vma: Vma, vaddr: Vaddr, write: bool) -> bool | None:
    """Return None if the page at a page-aligned address is not missing.

    Otherwise its userfaultfd has to give it. Return True if the access must wait, and set `mm.userfault`; False if it
    fails (UFFD_FEATURE_SIGBUS). Raises SysError(ENOMEM) if there is no frame for a page table.

    A fault that has waited with mmap_lock counts as major when it is taken again, one with the lock of its VMA as
    minor. Memory without an anon_vma needs mmap_lock, and so does the kernel.
    Source: Linux v6.8 mm/memory.c: lock_vma_under_rcu(), mm_account_fault() (FAULT_FLAG_TRIED).
    """
    ctx = vma.userfaultfd_ctx
    assert ctx is not None
    if ctx.released:
        return None
    is_major = vma.file is None and vma.anon_vma is None
    if not _is_missing(mm, vma, vaddr, write):
        return None
    if Feature.SIGBUS in ctx.features:
        return False
    mm.userfault = Userfault(ctx, vaddr, PagefaultFlag.WRITE if write else PagefaultFlag(0), is_major)
    return True


def _is_missing(mm: MmStruct, vma: Vma, vaddr: Vaddr, write: bool) -> bool:
    """Return whether there is no page, and prepare what Linux has prepared when it finds that out."""
    pte = mm.page_table.find_pte(vaddr)
    if pte is not None and mm.frames.ram.words[pte]:
        return False
    if vma.file is not None:
        if write and not vma.vm_flags & VM_SHARED:
            prepare_anon_vma(mm, vma)
        mapping, index = vma.file.mapping, vma.page_index(vaddr)
        is_missing = index < mapping.last_index() and not mapping.has_page(index)
        if is_missing:
            _begin_fault(mm, vma, vaddr, pte, maps_around=not write and not vma.file.is_sysv_shm)
        return is_missing
    if pte is None:
        if mm.page_table.find_huge_pmd(vaddr) is not None:
            return False
        if thp_vma_allowable(mm, vma) and thp_vma_suitable(vma, vaddr):
            # Source: Linux v6.8 mm/huge_memory.c:do_huge_pmd_anonymous_page(): it gives its new leaf table back.
            prepare_anon_vma(mm, vma)
            return True
        mm.page_table.ensure_pte(vaddr)
    if write:
        prepare_anon_vma(mm, vma)
    return True


def _begin_fault(mm: MmStruct, vma: Vma, vaddr: Vaddr, pte: int | None, *, maps_around: bool) -> None:
    """Do what each fault of a file's page does before it asks the file: upper tables, and the cached pages around.

    Source: Linux v6.8 mm/memory.c: __handle_mm_fault(), do_read_fault(), and do_fault(), which frees a leaf table that
    nothing has been mapped in. A userfaultfd for missing pages is no reason against pages around
    (include/linux/userfaultfd_k.h:uffd_disable_fault_around()).
    """
    own = mm.page_table.ensure_pte(vaddr)
    if maps_around:
        map_pages_around(mm, vma, vaddr, own)
    if pte is None:
        mm.page_table.free_empty_table(vaddr)
