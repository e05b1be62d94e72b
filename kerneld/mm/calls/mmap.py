"""mmap: checks in Linux's order, then the mapping itself.

Knows no task beyond its rights. Answers to Linux v6.8 mm/mmap.c: do_mmap(), mmap_region(), may_expand_vm().

| check, in this order                                    | error                          |
|---------------------------------------------------------|--------------------------------|
| length 0                                                | EINVAL                         |
| length rounds up to 0; too many VMAs; no room           | ENOMEM                         |
| offset + length wraps, or exceeds the largest file size | EOVERFLOW                      |
| MAP_FIXED_NOREPLACE over a mapping                      | EEXIST                         |
| MAP_LOCKED without right or over the limit              | EPERM, EAGAIN                  |
| shared, validated: a flag that the file does not know   | EOPNOTSUPP                     |
| shared and writable: the file not open for writing      | EACCES                         |
| file not open for reading                               | EACCES                         |
| file on a noexec mount, with PROT_EXEC                  | EPERM                          |
| file without an mmap operation: a pipe, a directory     | ENODEV                         |
| neither shared nor private; GROWSDOWN where not allowed | EINVAL                         |
| then, after the old mappings are removed:               |                                |
| no memory to promise                                    | ENOMEM                         |
| file sealed against writing, shared and writable        | EPERM                          |
| file whose mmap operation refuses: sysfs, huge pages    | its errno                      |
| writable and executable, after PR_SET_MDWE              | EACCES                         |
"""

from __future__ import annotations

import errno
from collections.abc import Generator

from kerneld.errors import SysError
from kerneld.mm.calls.mlock import can_do_mlock, mlock_future_ok
from kerneld.mm.files.file import File, shmem_zero_setup
from kerneld.mm.files.hugetlb import check_hugetlb_area, hugetlbfs_file_mmap
from kerneld.mm.space.ksm import ksm_vma_flags
from kerneld.mm.space.mdwe import map_deny_write_exec
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.munmap import do_munmap, munmap_in_pieces
from kerneld.mm.space.overcommit import accountable_mapping, check_enough_memory
from kerneld.mm.space.pace import is_wide
from kerneld.mm.space.pkeys import execute_only_pkey
from kerneld.mm.space.unmapped_area import get_unmapped_area, round_hint_to_min
from kerneld.mm.space.vma import Vma
from kerneld.mm.space.vma_merge import merge_into_neighbours, vma_expanded
from kerneld.mm.vm_flags import (
    VM_ACCOUNT,
    VM_EXEC,
    VM_GROWSDOWN,
    VM_LOCKED,
    VM_MAYEXEC,
    VM_MAYREAD,
    VM_MAYSHARE,
    VM_MAYWRITE,
    VM_NORESERVE,
    VM_SHARED,
    VM_SOFTDIRTY,
    VM_SYNC,
    VM_WRITE,
    calc_vm_flag_bits,
    calc_vm_prot_bits,
    is_shared_maywrite,
)
from shared.uapi.fcntl import F_SEAL_FUTURE_WRITE, F_SEAL_WRITE
from shared.uapi.mman import MAP_HUGE_SIZES, MAP_TYPE, Map, Prot
from shared.uapi.page import PAGE_SHIFT, Vaddr, page_align
from shared.uapi.resource import RLIM_INFINITY, Rlimit

_SHARED, _PRIVATE, _SHARED_VALIDATE = Map.SHARED.value, Map.PRIVATE.value, Map.SHARED_VALIDATE.value
_FIXED, _FIXED_NOREPLACE = Map.FIXED.value, Map.FIXED_NOREPLACE.value
_POPULATE, _NONBLOCK = Map.POPULATE.value, Map.NONBLOCK.value
_LOCKED = Map.LOCKED.value
_WRITE_SEALS = F_SEAL_WRITE | F_SEAL_FUTURE_WRITE
_EXEC = Prot.EXEC.value
_ACCESS = (Prot.READ | Prot.WRITE | Prot.EXEC).value
_AS, _DATA = Rlimit.AS.value, Rlimit.DATA.value
_LEGACY_MAP_MASK = (
    Map.SHARED | Map.PRIVATE | Map.FIXED | Map.ANONYMOUS | Map.DENYWRITE | Map.EXECUTABLE | Map.UNINITIALIZED
    | Map.GROWSDOWN | Map.LOCKED | Map.NORESERVE | Map.POPULATE | Map.NONBLOCK | Map.STACK | Map.HUGETLB | Map.BIT32
    | Map.ABOVE4G
).value | MAP_HUGE_SIZES  # fmt: skip


def do_mmap(
    mm: MmStruct, addr: Vaddr, length: int, prot: int, flags: int, file: File | None, pgoff: int, *, privileged: bool
) -> Vaddr:
    """Make a mapping and return its address; then the caller calls `wants_populate`, and faults pages in if it is True.

    `length` is in bytes and need not be aligned, `pgoff` in pages; `file` is None for anonymous memory; `privileged` is
    CAP_IPC_LOCK and CAP_SYS_RAWIO. Execute-only memory gets its protection key. Raises SysError as the table
    above says; a call that fails behind EEXIST in the table may have allocated that key.
    Source: Linux v6.8 mm/mmap.c:do_mmap().
    """
    addr, vm_flags, pgoff = check_mmap(mm, addr, length, prot, flags, file, pgoff, privileged=privileged)
    mmap_region(mm, addr, page_align(length), vm_flags, file, pgoff)
    return addr


def clears_in_pieces(mm: MmStruct, length: int, flags: int) -> bool:
    """Return whether it may take long to remove the old mappings at the place of a new one."""
    return flags & _FIXED != 0 and is_wide(mm.map_count, length)


def mmap_in_pieces(
    mm: MmStruct, addr: Vaddr, length: int, prot: int, flags: int, file: File | None, pgoff: int, *, privileged: bool
) -> Generator[None, None, Vaddr]:
    """Do the same as `do_mmap`; yield while old mappings are removed. The caller must keep the address space alive."""
    addr, vm_flags, pgoff = check_mmap(mm, addr, length, prot, flags, file, pgoff, privileged=privileged)
    length = page_align(length)
    check_expand(mm, addr, length, vm_flags)
    yield from munmap_in_pieces(mm, addr, length)
    mmap_region(mm, addr, length, vm_flags, file, pgoff, fits=True)
    return addr


def mmap_steps(
    mm: MmStruct, addr: Vaddr, length: int, prot: int, flags: int, file: File | None, pgoff: int, *, privileged: bool
) -> Generator[None, None, Vaddr]:
    """Do the same as `do_mmap`; yield while old mappings are removed, where that may take long."""
    if clears_in_pieces(mm, length, flags):
        return (yield from mmap_in_pieces(mm, addr, length, prot, flags, file, pgoff, privileged=privileged))
    return do_mmap(mm, addr, length, prot, flags, file, pgoff, privileged=privileged)


def check_mmap(
    mm: MmStruct, addr: Vaddr, length: int, prot: int, flags: int, file: File | None, pgoff: int, *, privileged: bool
) -> tuple[Vaddr, int, int]:
    """Check the arguments of `do_mmap`, up to EINVAL of its table; return the address, the VM_ flags, the offset."""
    if not length:
        raise SysError(errno.EINVAL)
    if flags & _FIXED_NOREPLACE:
        flags |= _FIXED
    if not flags & _FIXED:
        addr = round_hint_to_min(mm, addr)
    length = page_align(length)
    if length >= 1 << 64:
        raise SysError(errno.ENOMEM)
    if pgoff + (length >> PAGE_SHIFT) >= 1 << 64:
        raise SysError(errno.EOVERFLOW)
    if mm.map_count > mm.sysctl.max_map_count:
        raise SysError(errno.ENOMEM)
    mm.frames.kernel_objects.check_room(mm.owner, 1)
    aligned = flags & MAP_TYPE != _SHARED if file is None else not (file.mapping.is_shmem or file.is_dev_zero)
    offset = None if file is None or file.is_dev_zero else pgoff << PAGE_SHIFT
    if file is not None and file.huge_page_bytes:
        check_hugetlb_area(file, addr, length, flags)
    addr = get_unmapped_area(
        mm,
        addr,
        length,
        flags,
        pmd_aligned=aligned,
        offset=offset,
        raw_io=privileged,
        accessible=prot & _ACCESS != 0,
    )
    if flags & _FIXED_NOREPLACE and mm.vmas.find_intersection(addr, addr + length) is not None:
        raise SysError(errno.EEXIST)
    pkey = max(execute_only_pkey(mm), 0) if prot == _EXEC else 0
    vm_flags = calc_vm_prot_bits(prot, pkey) | calc_vm_flag_bits(flags) | mm.def_flags
    vm_flags |= VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC
    if flags & _LOCKED and not can_do_mlock(mm, privileged):
        raise SysError(errno.EPERM)
    if not mlock_future_ok(mm, vm_flags, length, privileged):
        raise SysError(errno.EAGAIN)
    if file is None:
        vm_flags, pgoff = _check_anonymous(flags, vm_flags, addr)
    else:
        vm_flags = _check_file(file, prot, flags, vm_flags, pgoff, length)
    if flags & Map.NORESERVE.value and mm.sysctl.overcommit_memory != 2:
        vm_flags |= VM_NORESERVE
    return addr, vm_flags, pgoff


def wants_populate(mm: MmStruct, flags: int) -> bool:
    """Return whether a new mapping with these MAP_ flags is to be faulted in: MAP_POPULATE, or locked.

    Source: Linux v6.8 mm/mmap.c:do_mmap(), its result `*populate`.
    """
    return flags & (_POPULATE | _NONBLOCK) == _POPULATE or (flags & _LOCKED or mm.def_flags & VM_LOCKED) != 0


def _check_anonymous(flags: int, vm_flags: int, addr: Vaddr) -> tuple[int, int]:
    """Return the VM_ flags and the page offset of an anonymous mapping."""
    kind = flags & MAP_TYPE
    if kind == _SHARED:
        if vm_flags & VM_GROWSDOWN:
            raise SysError(errno.EINVAL)
        return vm_flags | VM_SHARED | VM_MAYSHARE, 0
    if kind == _PRIVATE:
        return vm_flags, addr >> PAGE_SHIFT
    raise SysError(errno.EINVAL)


def _check_file(file: File, prot: int, flags: int, vm_flags: int, pgoff: int, length: int) -> int:
    """Return the VM_ flags of a file mapping. Source: Linux v6.8 mm/mmap.c:do_mmap() and file_mmap_ok()."""
    limit = file.max_bytes
    if length > limit or pgoff > (limit - length) >> PAGE_SHIFT:
        raise SysError(errno.EOVERFLOW)
    kind = flags & MAP_TYPE
    if kind not in (_SHARED, _PRIVATE, _SHARED_VALIDATE):
        raise SysError(errno.EINVAL)
    known = _LEGACY_MAP_MASK | _SHARED_VALIDATE | mmap_supported_flags(file)
    if kind == _SHARED_VALIDATE and flags & ~known:
        raise SysError(errno.EOPNOTSUPP)
    if kind != _PRIVATE:
        if prot & Prot.WRITE.value and not file.writable:
            raise SysError(errno.EACCES)
        vm_flags |= VM_SHARED | VM_MAYSHARE
        if not file.writable:
            vm_flags &= ~(VM_MAYWRITE | VM_SHARED)
    if not file.readable:
        raise SysError(errno.EACCES)
    if file.noexec:
        if vm_flags & VM_EXEC:
            raise SysError(errno.EPERM)
        vm_flags &= ~VM_MAYEXEC
    if not file.mappable:
        raise SysError(errno.ENODEV)
    if vm_flags & VM_GROWSDOWN:
        raise SysError(errno.EINVAL)
    return vm_flags


def mmap_supported_flags(file: File) -> int:
    """Return the flags of MAP_SHARED_VALIDATE that a file's file system knows beside the common flags.

    A file system on disk knows MAP_SYNC, and refuses it later unless the disk is persistent memory. Source: Linux
    v6.8 fs/ext4/file.c.
    """
    return 0 if file.mapping.is_shmem else Map.SYNC.value


def may_expand_vm(mm: MmStruct, vm_flags: int, pages: int) -> bool:
    """Return whether RLIMIT_AS and RLIMIT_DATA leave room for `pages` more pages.

    Source: Linux v6.8 mm/mmap.c:may_expand_vm().
    """
    soft = mm.rlimits.soft
    if mm.total_vm + pages > soft[_AS] >> PAGE_SHIFT:
        return False
    if vm_flags & (VM_WRITE | VM_SHARED | VM_GROWSDOWN) == VM_WRITE:
        limit = soft[_DATA]
        if limit != RLIM_INFINITY and mm.data_vm + pages > limit >> PAGE_SHIFT:
            hard = mm.rlimits.hard[_DATA]
            return limit == 0 and mm.data_vm + pages <= hard >> PAGE_SHIFT
    return True


def _mapped_pages(mm: MmStruct, start: Vaddr, end: Vaddr) -> int:
    """Return how many pages of [start, end) VMAs cover. Source: Linux v6.8 mm/mmap.c:count_vma_pages_range()."""
    covered = sum(min(end, vma.end) - max(start, vma.start) for vma in mm.vmas.overlapping(start, end))
    return covered >> PAGE_SHIFT


def check_expand(mm: MmStruct, addr: Vaddr, length: int, vm_flags: int) -> None:
    """Raise SysError(ENOMEM) if the new mapping exceeds a limit; the mappings that it replaces are not counted."""
    pages = length >> PAGE_SHIFT
    if not may_expand_vm(mm, vm_flags, pages):
        mapped = _mapped_pages(mm, addr, addr + length)
        if not may_expand_vm(mm, vm_flags, pages - mapped):
            raise SysError(errno.ENOMEM)


def mmap_region(
    mm: MmStruct, addr: Vaddr, length: int, vm_flags: int, file: File | None, pgoff: int, *, fits: bool = False
) -> Vma:
    """Put a checked mapping at `addr`, replacing old mappings there; merge it with its neighbours if possible.

    `fits`: no limit is asked again. What was unmapped in pieces before might have counted for another limit.
    Raises SysError(ENOMEM) over a limit, before any change. After the old mappings are removed (as on Linux), raises
    SysError(ENOMEM) without memory, and the errors of the file itself.
    Source: Linux v6.8 mm/mmap.c:mmap_region().
    """
    end = addr + length
    pages = length >> PAGE_SHIFT
    if not fits:
        check_expand(mm, addr, length, vm_flags)
    if mm.vmas.find_intersection(addr, end) is not None:
        do_munmap(mm, addr, length)
    if accountable_mapping(file, vm_flags):
        check_enough_memory(mm, pages)
        vm_flags |= VM_ACCOUNT
    if file is None and vm_flags & VM_SHARED:
        return _insert(mm, addr, end, vm_flags, _new_shared_memory(mm, length, vm_flags), pgoff)
    # A merge into a neighbour does not ask the file: seals that are younger than the neighbour do not count.
    merged = merge_into_neighbours(mm, addr, end, vm_flags, file, pgoff)
    if merged is not None:
        return vma_expanded(mm, merged)
    if file is None:
        if mm.mdwe:
            _check_write_exec(mm, vm_flags)
        return _insert(mm, addr, end, vm_flags, None, pgoff)
    if file.is_dev_zero:
        return _mmap_zero(mm, addr, end, vm_flags, file, pgoff)
    asked, vm_flags = vm_flags, _call_mmap(file, vm_flags, pgoff)
    _check_write_exec(mm, vm_flags)
    if is_shared_maywrite(vm_flags):
        file.mapping.map_writable()
        vma = _insert(mm, addr, end, vm_flags, file, pgoff)
        file.mapping.unmap_writable()
        return vma
    if vm_flags != asked and mm.vmas.preceding(addr) is not None:
        merged = merge_into_neighbours(mm, addr, end, vm_flags, file, pgoff)
    return _insert(mm, addr, end, vm_flags, file, pgoff) if merged is None else vma_expanded(mm, merged)


def _mmap_zero(mm: MmStruct, start: Vaddr, end: Vaddr, vm_flags: int, file: File, pgoff: int) -> Vma:
    """Map /dev/zero. Source: Linux v6.8 drivers/char/mem.c:mmap_zero().

    Differs from Linux: two mappings of one open /dev/zero, with offsets that follow each other, do not merge.
    """
    if vm_flags & VM_SHARED:
        return _insert(mm, start, end, vm_flags, _new_shared_memory(mm, end - start, vm_flags), pgoff)
    _check_write_exec(mm, vm_flags)
    vma = Vma(start, end, ksm_vma_flags(mm, vm_flags) | VM_SOFTDIRTY, pgoff, dev_zero=file)
    mm.insert_vma(vma)
    return vma


def _check_write_exec(mm: MmStruct, vm_flags: int) -> None:
    """Raise SysError(EACCES) for a mapping that PR_SET_MDWE refuses; one that has merged is not looked at.

    Source: Linux v6.8 mm/mmap.c:mmap_region().
    """
    if map_deny_write_exec(mm, vm_flags, vm_flags):
        raise SysError(errno.EACCES)


def _insert(mm: MmStruct, start: Vaddr, end: Vaddr, vm_flags: int, file: File | None, pgoff: int) -> Vma:
    vma = Vma(start, end, ksm_vma_flags(mm, vm_flags) | VM_SOFTDIRTY, pgoff, file)
    mm.insert_vma(vma)
    return vma


def _new_shared_memory(mm: MmStruct, length: int, vm_flags: int) -> File:
    """Return a file for shared anonymous memory. Raises SysError(ENOMEM), and EACCES as `_check_write_exec`."""
    noreserve = vm_flags & VM_NORESERVE != 0
    if not noreserve:
        check_enough_memory(mm, length >> PAGE_SHIFT)
    _check_write_exec(mm, vm_flags)
    return shmem_zero_setup(mm.frames, length, noreserve=noreserve)


def seal_check_write(file: File, vm_flags: int) -> int:
    """Return the VM_ flags of a mapping of a file under its seals: a shared one can never become writable.

    Raises SysError(EPERM) for a shared writable mapping of a file that is sealed against writing.
    Source: Linux v6.8 include/linux/mm.h:seal_check_write().
    """
    if not file.seals & _WRITE_SEALS or not vm_flags & VM_SHARED:
        return vm_flags
    if vm_flags & VM_WRITE:
        raise SysError(errno.EPERM)
    return vm_flags & ~VM_MAYWRITE


def _call_mmap(file: File, vm_flags: int, pgoff: int) -> int:
    """Ask the file itself, after the old mappings are removed; return the VM_ flags. Raises SysError with its errno.

    MAP_SYNC is allowed for files in persistent memory; files in memory ignore it.
    Source: Linux v6.8 mm/mmap.c:mmap_region(), mm/shmem.c:shmem_mmap() and fs/ext4/file.c:ext4_file_mmap().
    """
    vm_flags = seal_check_write(file, vm_flags)
    if file.is_sysv_shm and not file.mapping.i_mmap and not file.mapping.nr_holds:
        # The segment was removed, and what this call has unmapped was its last attach: ipc/shm.c:shm_mmap().
        raise SysError(errno.EINVAL)
    if file.huge_page_bytes:
        hugetlbfs_file_mmap(file, pgoff)
    if file.refuses:
        raise SysError(file.refuses)
    if vm_flags & VM_SYNC and not file.mapping.is_shmem:
        raise SysError(errno.EOPNOTSUPP)
    return vm_flags


def vm_brk_limit_ok(mm: MmStruct, addr: Vaddr, length: int, *, privileged: bool) -> bool:
    """Return whether [addr, addr + length) may become heap. Source: Linux v6.8 mm/mmap.c:check_brk_limits()."""
    try:
        get_unmapped_area(mm, addr, length, _FIXED, raw_io=privileged)
    except SysError:
        return False
    return mlock_future_ok(mm, mm.def_flags, length, privileged)
