"""The ioctls of a userfaultfd on its address space: which ranges it watches, and the pages that it gives.

Knows no descriptor and no bytes of a record. Answers to Linux v6.8 fs/userfaultfd.c: userfaultfd_register(),
userfaultfd_unregister(), userfaultfd_release(), and mm/userfaultfd.c: mfill_atomic(), mfill_atomic_install_pte().

| the entry at the destination          | UFFDIO_COPY, UFFDIO_ZEROPAGE                                    |
|---------------------------------------|-----------------------------------------------------------------|
| empty, private                        | a new page; the shared zero page                                |
| empty, shared, the file has no page   | a new page of the file                                          |
| empty, shared, the file has the page  | EEXIST                                                          |
| past the end of a file                | EFAULT                                                          |
| not empty                             | EEXIST                                                          |
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Generator

from kerneld.errors import SysError
from kerneld.hw.paging import PTE_MKDIRTY, PTE_RW, PTE_SPECIAL, make_pte
from kerneld.mm.files.dirtying import do_page_mkwrite
from kerneld.mm.files.filemap import AddressSpace
from kerneld.mm.frames.frames import ZERO_PFN
from kerneld.mm.frames.lru import mlock_folio
from kerneld.mm.space.anon_page import new_anon_page, prepare_anon_vma
from kerneld.mm.space.mm import MmStruct, vma_page_prot
from kerneld.mm.space.pace import Pace, Steps
from kerneld.mm.space.userfaultfd import AwaitsPage, Userfault, UserfaultfdCtx
from kerneld.mm.space.vma import Vma
from kerneld.mm.space.vma_merge import vma_modify
from kerneld.mm.space.wait import Wait
from kerneld.mm.vm_flags import VM_LOCKED, VM_MAYWRITE, VM_SHARED, VM_UFFD_FLAGS, VM_WRITE
from shared.uapi.page import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, TASK_SIZE, Pfn, Vaddr

Source = Callable[[int], bytes]
"""Returns the page that is `offset` bytes behind the beginning of the source. Raises SysError(EFAULT), and AwaitsPage
if another userfaultfd has to give it."""


def check_range(mm: MmStruct, start: int, length: int) -> None:
    """Raise SysError(EINVAL) for a range that is empty, not in user space, or not of whole pages.

    Source: Linux v6.8 fs/userfaultfd.c:validate_range().
    """
    if start & ~PAGE_MASK:
        raise SysError(errno.EINVAL)
    _check_unaligned(mm, start, length)


def check_source(mm: MmStruct, start: int, length: int) -> None:
    """Do the same for a range that may begin at any address: what UFFDIO_COPY copies from.

    Source: Linux v6.8 fs/userfaultfd.c:userfaultfd_copy().
    """
    _check_unaligned(mm, start, length)


def _check_unaligned(mm: MmStruct, start: int, length: int) -> None:
    """Source: Linux v6.8 fs/userfaultfd.c:validate_unaligned_range()."""
    if length & ~PAGE_MASK or not length:
        raise SysError(errno.EINVAL)
    if start < lowest_address(mm) or start >= TASK_SIZE or length > TASK_SIZE - start:
        raise SysError(errno.EINVAL)


def lowest_address(mm: MmStruct) -> Vaddr:
    """Return the lowest address of a range that may be given. Source: Linux v6.8 fs/userfaultfd.c:validate_range()."""
    return mm.sysctl.lowest_chosen_addr


def vma_can_userfault(vma: Vma) -> bool:
    """Return whether a userfaultfd can watch a VMA: private anonymous memory, and files in memory.

    Source: Linux v6.8 include/linux/userfaultfd_k.h:vma_can_userfault().
    """
    return vma.file is None or (vma.file.mapping.is_shmem and not vma.file.is_sysv_shm)


def register(ctx: UserfaultfdCtx, start: Vaddr, end: Vaddr, vm_flags: int) -> Steps:
    """Let a userfaultfd watch [start, end), page-aligned, for `vm_flags` of VM_UFFD_FLAGS.

    Yields when other clients may be served; the caller keeps the threads of the address space waiting, as mmap_lock
    does. Raises SysError(EINVAL) if nothing is mapped there, or memory that cannot be watched; EPERM for a file that
    the program cannot write; EBUSY if another userfaultfd watches a part; ENOMEM over vm.max_map_count, or if the
    process has ended.
    """

    def check(vma: Vma) -> None:
        _check_vma(vma)
        if not vma.vm_flags & VM_MAYWRITE:
            raise SysError(errno.EPERM)
        if vma.userfaultfd_ctx is not None and vma.userfaultfd_ctx is not ctx:
            raise SysError(errno.EBUSY)

    def watch(vma: Vma) -> None:
        if vma.userfaultfd_ctx is not ctx or vma.vm_flags & vm_flags != vm_flags:
            new_flags = vma.vm_flags & ~VM_UFFD_FLAGS | vm_flags
            _modify(ctx.mm, vma, max(start, vma.start), min(end, vma.end), new_flags, ctx)

    if ctx.mm.vmas.find_intersection(start, end) is None:
        raise SysError(errno.EINVAL)
    yield from _for_each(ctx.mm, start, end, check)
    yield from _for_each(ctx.mm, start, end, watch)


def unregister(mm: MmStruct, start: Vaddr, end: Vaddr) -> Steps:
    """Let no userfaultfd watch [start, end), page-aligned; the accesses that wait there go on.

    Yields as `register` does. Raises SysError(EINVAL) if nothing is mapped there, or memory that cannot be watched;
    ENOMEM over vm.max_map_count, or if the process has ended.
    """

    def ignore(vma: Vma) -> None:
        ctx = vma.userfaultfd_ctx
        if ctx is not None:
            first, last = max(start, vma.start), min(end, vma.end)
            _modify(mm, vma, first, last, vma.vm_flags & ~VM_UFFD_FLAGS, None)
            ctx.wake(first, last - first)

    if mm.vmas.find_intersection(start, end) is None:
        raise SysError(errno.EINVAL)
    yield from _for_each(mm, start, end, _check_vma)
    yield from _for_each(mm, start, end, ignore)


def release(ctx: UserfaultfdCtx) -> Steps:
    """Let a userfaultfd whose last descriptor is closed watch nothing. All accesses that wait for it go on at once.

    Yields as `register` does.
    """

    def ignore(vma: Vma) -> None:
        if vma.userfaultfd_ctx is ctx:
            _modify(ctx.mm, vma, vma.start, vma.end, vma.vm_flags & ~VM_UFFD_FLAGS, None)

    if not ctx.mm.is_dying:
        with contextlib.suppress(SysError):
            yield from _for_each(ctx.mm, 0, TASK_SIZE, ignore)


def _check_vma(vma: Vma) -> None:
    if not vma_can_userfault(vma):
        raise SysError(errno.EINVAL)


def _for_each(mm: MmStruct, start: Vaddr, end: Vaddr, visit: Callable[[Vma], None]) -> Steps:
    """Visit the VMAs of a range. Raises SysError(ENOMEM) if their process ends meanwhile."""
    pace = Pace()
    for vma in _each(mm, start, end):
        visit(vma)
        if pace.is_over():
            yield
            if mm.is_dying:
                raise SysError(errno.ENOMEM)
            pace.begin()


def _modify(mm: MmStruct, vma: Vma, start: Vaddr, end: Vaddr, vm_flags: int, ctx: UserfaultfdCtx | None) -> None:
    """Give a part of a VMA another userfaultfd, or none. Source: Linux v6.8 mm/mmap.c:vma_modify_flags_uffd()."""
    vma_modify(mm, vma, start, end, vm_flags, vma.traits._replace(userfaultfd_ctx=ctx))


def _each(mm: MmStruct, start: Vaddr, end: Vaddr) -> Generator[Vma, None, None]:
    """Yield the VMAs of a range, which may be changed meanwhile: the next one begins where this one has ended."""
    vma = mm.vmas.find_intersection(start, end)
    while vma is not None:
        after = vma.end
        yield vma
        vma = mm.vmas.find_intersection(after, end) if after < end else None


def mfill(
    ctx: UserfaultfdCtx, start: Vaddr, length: int, source: Source | None
) -> Generator[Wait | None, None, tuple[int, int]]:
    """Give the pages of [start, start + length), page-aligned, one after the other, until one cannot be given.

    `source` has their contents; without it they are zeros. Returns the number of bytes given, and 0 or the errno that
    stopped it: ENOENT if the range is not in one VMA that is watched, EEXIST if there is a page, EFAULT past the end of
    a file or for a source that cannot be read, EINVAL for other memory, ENOMEM, ESRCH if the process has ended. Yields
    as `Steps` do.
    """
    done, pace = 0, Pace()
    while done < length:
        if ctx.mm.is_dying:
            return done, errno.ESRCH
        fault: Userfault | None = None
        try:
            vma = _find_dst_vma(ctx.mm, start + done, length - done)
            _alloc_pte(ctx.mm, start + done)
            data = source(done) if source is not None else None
            _mfill_pte(ctx.mm, vma, start + done, data)
        except SysError as error:
            if not ctx.mm.frames.take_stall():
                return done, error.errno
            yield None
            pace.begin()
            continue
        except AwaitsPage as awaits:
            fault = awaits.fault
        if fault is not None:
            yield from fault.wait()
            continue
        done += PAGE_SIZE
        if done < length and pace.is_over():
            yield None
            pace.begin()
    return done, 0


def _find_dst_vma(mm: MmStruct, start: Vaddr, length: int) -> Vma:
    """Source: Linux v6.8 mm/userfaultfd.c: find_dst_vma(), and the checks behind it in mfill_atomic()."""
    vma = mm.vmas.lookup(start)
    if vma is None or vma.userfaultfd_ctx is None or start + length > vma.end:
        raise SysError(errno.ENOENT)
    if not vma.vm_flags & VM_SHARED:
        prepare_anon_vma(mm, vma)
    return vma


def _alloc_pte(mm: MmStruct, vaddr: Vaddr) -> int:
    """Return the entry of a page: its table is made before the source is read.

    Source: Linux v6.8 mm/userfaultfd.c:mfill_atomic().
    """
    if mm.page_table.find_huge_pmd(vaddr) is not None:
        raise SysError(errno.EEXIST)
    return mm.page_table.ensure_pte(vaddr)


def _mfill_pte(mm: MmStruct, vma: Vma, vaddr: Vaddr, data: bytes | None) -> None:
    """Give one page. That of a file is clean: only its entry is dirty.

    Source: Linux v6.8 mm/userfaultfd.c: mfill_atomic_pte(), mfill_file_over_size(); mm/shmem.c:
    shmem_mfill_atomic_pte().
    """
    pte = _alloc_pte(mm, vaddr)
    if vma.file is not None and vma.page_index(vaddr) >= vma.file.mapping.last_index():
        raise SysError(errno.EFAULT)
    if mm.frames.ram.words[pte]:
        raise SysError(errno.EEXIST)
    prot = vma_page_prot(vma)
    writable = PTE_RW if vma.vm_flags & VM_WRITE else 0
    if vma.file is not None and vma.vm_flags & VM_SHARED:
        mapping, index = vma.file.mapping, vma.page_index(vaddr)
        pfn = _add_shmem_page(mapping, index, data)
        mm.frames.get_page(pfn)
        mm.pages.set_pte(pte, vaddr, make_pte(pfn, prot | PTE_MKDIRTY | writable), pfn)
        mapping.mark_unsaved(index)
        if vma.vm_flags & VM_LOCKED:
            mlock_folio(mm.frames, pfn)
    elif data is None:
        mm.pages.set_zero_pte(pte, vaddr, make_pte(ZERO_PFN, prot | PTE_SPECIAL))
    else:
        pfn = new_anon_page(mm, vma, vaddr, zero=False)
        mm.frames.ram.write(pfn << PAGE_SHIFT, data)
        mm.pages.set_pte(pte, vaddr, make_pte(pfn, prot | PTE_MKDIRTY | writable), pfn)


def _add_shmem_page(mapping: AddressSpace, index: int, data: bytes | None) -> Pfn:
    """Give a file in memory a page that it does not have, and return the frame, which is the file's.

    Source: Linux v6.8 mm/shmem.c:shmem_mfill_atomic_pte().
    """
    if mapping.has_page(index):
        raise SysError(errno.EEXIST)
    do_page_mkwrite(mapping, index)
    pfn = mapping.ensure_page(index)
    if data is not None:
        mapping.frames.ram.write(pfn << PAGE_SHIFT, data)
    return pfn
