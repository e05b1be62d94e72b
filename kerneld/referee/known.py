"""Known differences: where the host's kernel does otherwise than Linux v6.8, to which kerneld answers.

Each is a rule with the release and the commit that brought it, written as a replacement of kerneld's own. While the
referee runs, kerneld follows the later rule where the host is that new: what follows from the difference is then
compared as exactly as everything else, and no operation is left out. Nobody but the referee sees these rules.

Differences of configuration, not of version, stand at the end: what the host is built with and kerneld has not.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from kerneld.errors import SysError
from kerneld.hw.paging import PTRS_PER_TABLE
from kerneld.mm import fault, madvise, mmap, mremap, munmap, unmapped_area, vma_merge
from kerneld.mm.filemap import AddressSpace, File
from kerneld.mm.locked_pages import munlock_range
from kerneld.mm.madvise_pages import MayWrite
from kerneld.mm.mm import MmStruct
from kerneld.mm.mmap import may_expand_vm
from kerneld.mm.munmap import do_munmap
from kerneld.mm.overcommit import accountable_mapping, check_enough_memory
from kerneld.mm.populate import mm_populate
from kerneld.mm.rmap import AnonVma, dup_anon_vma
from kerneld.mm.vm_flags import VM_LOCKED, VM_MAYSHARE, VM_MERGEABLE, VM_SHARED
from kerneld.mm.vma import Vma
from kerneld.syscalls import remote
from kerneld.task import uaccess
from kerneld.task.task import Process
from shared.uapi.mman import Madv, Map, Mremap
from shared.uapi.page import PAGE_MASK, PAGE_SHIFT, PMD_SIZE, TASK_SIZE, Vaddr, page_align

_MAYMOVE, _FIXED, _DONTUNMAP = Mremap.MAYMOVE.value, Mremap.FIXED.value, Mremap.DONTUNMAP.value
_KNOWN_MAPS_FLAGS = {"lf": "??"}


class Known(NamedTuple):
    """One difference."""

    since: tuple[int, int]
    """The release that brought it; (0, 0) for one of configuration."""
    commit: str
    what: str
    rules: tuple[tuple[Any, str, Any], ...] = ()
    """What replaces what: a module of kerneld, a name in it, the later rule."""
    applies: Callable[[], bool] = lambda: True


# v6.16: which anon_vmas let VMAs merge.


class _Source:
    """The VMA whose memory is to be merged into another, during a call; None where it is new memory."""

    vma: Vma | None = None


def _is_fork_child(vma: Vma | None) -> bool:
    return vma is not None and vma.anon_vma is not None and len(vma.anon_vma_chain) != 1


def _is_mergeable_anon_vma(one: AnonVma | None, other: AnonVma | None, vma: Vma | None) -> bool:
    """Source: Linux v6.16 mm/vma.c:is_mergeable_anon_vma(); `one` is the source's, `other` the target's."""
    if vma is None:
        return one is None or other is None or one is other
    if other is None and one is not None:
        return not _is_fork_child(_Source.vma)
    if other is not None and one is None:
        return not _is_fork_child(vma)
    return one is other


def _with_source(function: Callable[..., Vma]) -> Callable[..., Vma]:
    def wrapped(mm: MmStruct, vma: Vma, *args: Any) -> Vma:
        _Source.vma = vma
        try:
            return function(mm, vma, *args)
        finally:
            _Source.vma = None

    return wrapped


def _merge_into_neighbours(
    mm: MmStruct, start: Vaddr, end: Vaddr, vm_flags: int, file: File | None, pgoff: int
) -> Vma | None:
    """Source: Linux v6.16 mm/vma.c:vma_merge_new_range(): the VMA before is asked first."""
    prev, following = mm.vmas.preceding(start), mm.vmas.find(start)
    pgoff_end = pgoff + ((end - start) >> PAGE_SHIFT)
    left = prev is not None and prev.end == start and vma_merge.can_merge_after(prev, vm_flags, None, file, pgoff)
    right = (
        following is not None
        and following.start == end
        and vma_merge.can_merge_before(following, vm_flags, None, file, pgoff_end)
    )
    if left and prev is not None:
        if right and following is not None and _is_mergeable_anon_vma(prev.anon_vma, following.anon_vma, None):
            dup_anon_vma(prev, following)
            mm.remove_vma(following)
            end = following.end
        mm.move_vma_bounds(prev, prev.start, end)
        return prev
    if right and following is not None:
        mm.move_vma_bounds(following, start, following.end)
        return following
    return None


# v6.12: mmap keeps what was there when memory is not enough.


def _mmap_region(mm: MmStruct, addr: Vaddr, length: int, vm_flags: int, file: File | None, pgoff: int) -> Vma:
    """Source: Linux v6.12 mm/mmap.c:mmap_region(): charged before anything is unmapped."""
    if accountable_mapping(file, vm_flags):
        check_enough_memory(mm, length >> PAGE_SHIFT)
    return _v6_8["mmap_region"](mm, addr, length, vm_flags, file, pgoff)  # type: ignore[no-any-return]


# v6.17: mremap checks everything before it changes anything, and moves several VMAs at once.


def _do_mremap(
    mm: MmStruct, addr: Vaddr, old_len: int, new_len: int, flags: int, new_addr: Vaddr, *, privileged: bool
) -> Vaddr:
    """Source: Linux v6.17 mm/mremap.c:do_mremap(), check_mremap_params()."""
    old_len, new_len = page_align(old_len) % (1 << 64), page_align(new_len) % (1 << 64)
    if flags & ~(_MAYMOVE | _FIXED | _DONTUNMAP) or addr & ~PAGE_MASK or not new_len or new_len > TASK_SIZE:
        raise SysError(errno.EINVAL)
    if not flags & (_FIXED | _DONTUNMAP):
        return _mremap_at(mm, addr, old_len, new_len, flags, privileged)
    if new_addr > TASK_SIZE - new_len or new_addr & ~PAGE_MASK or not flags & _MAYMOVE:
        raise SysError(errno.EINVAL)
    if flags & _DONTUNMAP and old_len != new_len:
        raise SysError(errno.EINVAL)
    if (addr + old_len) % (1 << 64) > new_addr and new_addr + new_len > addr:
        raise SysError(errno.EINVAL)
    if flags & _FIXED and old_len == new_len:
        return _remap_move(mm, addr, old_len, new_addr, flags, privileged)
    return _mremap_to(mm, addr, old_len, new_addr, new_len, flags, privileged)


def _mremap_at(mm: MmStruct, addr: Vaddr, old_len: int, new_len: int, flags: int, privileged: bool) -> Vaddr:
    return _v6_8["do_mremap"](mm, addr, old_len, new_len, flags, 0, privileged=privileged)  # type: ignore[no-any-return]


def _remap_move(mm: MmStruct, addr: Vaddr, length: int, new_addr: Vaddr, flags: int, privileged: bool) -> Vaddr:
    """Source: Linux v6.17 mm/mremap.c:remap_move(): the gaps between VMAs are kept."""
    end, target, result, last_end = addr + length, new_addr, -1, 0
    vma = mm.vmas.find(addr)
    while vma is not None and vma.start < end:
        if result < 0 and addr < vma.start:
            raise SysError(errno.EFAULT)
        start, stop = max(vma.start, addr), min(end, vma.end)
        target += vma.start - last_end if result >= 0 else 0
        last_end = vma.end
        moved = _mremap_to(mm, start, stop - start, target, stop - start, flags, privileged)
        result = moved if result < 0 else result
        target = moved + stop - start
        vma = mm.vmas.find(stop) if stop < end else None
    if result < 0:
        raise SysError(errno.EFAULT)
    return result


def _mremap_to(
    mm: MmStruct, addr: Vaddr, old_len: int, new_addr: Vaddr, new_len: int, flags: int, privileged: bool
) -> Vaddr:
    """Source: Linux v6.17 mm/mremap.c:check_prep_vma(), mremap_to()."""
    kept = min(old_len, new_len)
    vma = mm.vmas.lookup(addr)
    if vma is None:
        raise SysError(errno.EFAULT)
    if not old_len and not vma.vm_flags & (VM_SHARED | VM_MAYSHARE):
        raise SysError(errno.EINVAL)
    mremap.vma_to_resize(mm, addr, kept, new_len, flags, privileged)
    if mm.map_count + 2 >= mm.sysctl.max_map_count - 3:
        raise SysError(errno.ENOMEM)
    if flags & _FIXED:
        do_munmap(mm, new_addr, new_len)
        if mm.vmas.lookup(addr) is None:
            raise SysError(errno.EFAULT)
    if old_len > new_len:
        do_munmap(mm, addr + new_len, old_len - new_len)
    vma = mm.vmas.lookup(addr)
    if vma is None:
        raise SysError(errno.EFAULT)
    if flags & _DONTUNMAP and not may_expand_vm(mm, vma.vm_flags, kept >> PAGE_SHIFT):
        raise SysError(errno.ENOMEM)
    map_flags = Map.FIXED.value if flags & _FIXED else 0
    new_addr = mremap.find_new_place(mm, vma, addr, new_addr, new_len, map_flags, privileged)
    locked = vma.vm_flags & VM_LOCKED
    mremap.move_vma(mm, vma, addr, kept, new_addr, new_len, flags)
    if locked and new_len > old_len:
        mm_populate(mm, new_addr + old_len, new_addr + new_len)
    return new_addr


# v6.12 and v6.13: smaller ones.


def _access_ok(vaddr: Vaddr, length: int) -> bool:
    """Source: Linux v6.12 arch/x86/include/asm/uaccess_64.h:__access_ok()."""
    return vaddr + length <= TASK_SIZE


def _aligned_to_pmd(mm: MmStruct, addr: Vaddr, length: int, flags: int, offset: int | None) -> Vaddr | None:
    """Source: Linux v6.13 mm/mmap.c:__get_unmapped_area(): whole huge pages, without a hint."""
    if offset is None and (addr or length % PMD_SIZE):
        return None
    return _v6_8["_aligned_to_pmd"](mm, addr, length, flags, offset)  # type: ignore[no-any-return]


# v6.18: faults around the end of a file.


class _Fault:
    """The fault under way."""

    has_table = True
    """Whether the page's leaf table was there before."""


def _handle_mm_fault(mm: MmStruct, vma: Vma, address: Vaddr, write: bool) -> int:
    _Fault.has_table = mm.page_table.find_pte(address) is not None
    return _v6_8["handle_mm_fault"](mm, vma, address, write)  # type: ignore[no-any-return]


def _map_pages_around(mm: MmStruct, vma: Vma, vaddr: Vaddr, pte: int) -> None:
    """Source: Linux v6.18 mm/filemap.c:filemap_map_pages(), can_map_large: no table is put in for the last page."""
    assert vma.file is not None
    mapping = vma.file.mapping
    table = pte & -PTRS_PER_TABLE
    if not (vma.file.in_memory or _Fault.has_table or mm.frames.ram.words_np[table : table + PTRS_PER_TABLE].any()):
        low, high = fault.window_around(vma, vaddr)
        last = mapping.last_index()
        cached = (i for i in range(low, min(high, last)) if mapping.is_uptodate(i))
        if next(cached, 0) == last - 1:
            return
    _v6_8["map_pages_around"](mm, vma, vaddr, pte)


# What kerneld does on purpose.


class Notices:
    """Faults that kerneld took to learn of the first write to a page of a memory file, which Linux need not know."""

    count = 0


def _unmap_vma(mm: MmStruct, vma: Vma) -> None:
    """Source: Linux v6.8 mm/mmap.c:unmap_region(): nothing is written to the file."""
    if vma.vm_flags & VM_LOCKED:
        munlock_range(mm, vma.start, vma.end)
    mm.zap_range(vma.start, vma.end)
    mm.remove_vma(vma)


def _unlink_vma(mapping: AddressSpace, vma: Vma) -> None:
    """What is cached of a file stays when nothing maps it; shared anonymous memory goes with its last mapping."""
    del mapping.i_mmap[vma]
    if not mapping.i_mmap and mapping.is_shmem:
        mapping.evict()


def _wp_page_shared(mm: MmStruct, vma: Vma, vaddr: Vaddr, pte: int, entry: int) -> int:
    if vma.file is not None and not vma.file.mapping.is_shmem:
        Notices.count += vma.file.in_memory
    return _v6_8["wp_page_shared"](mm, vma, vaddr, pte, entry)  # type: ignore[no-any-return]


# v6.12 and v6.13: what a process may advise itself.


def _check_process_madvise(caller: Process, process: Process, advice: int) -> None:
    """Source: Linux v6.13 mm/madvise.c:SYSCALL_DEFINE5(process_madvise)."""
    if not remote.may_access(caller, process):
        raise SysError(errno.EACCES)
    if process is not caller and advice not in madvise.PROCESS_ADVICE:
        raise SysError(errno.EINVAL)
    if process is not caller and not caller.cred.superuser:
        raise SysError(errno.EPERM)


# Configuration.


def _madvise_vma(mm: MmStruct, vma: Vma, start: Vaddr, end: Vaddr, advice: Madv, may_write: MayWrite) -> None:
    """With KSM, MERGEABLE and UNMERGEABLE set and clear a flag; COLLAPSE finds huge pages turned off.

    Source: Linux v6.8 mm/ksm.c:ksm_madvise(), mm/khugepaged.c:madvise_collapse().
    """
    if advice is Madv.WILLNEED and vma.file is None:
        return
    if advice is Madv.COLLAPSE:
        raise SysError(errno.EINVAL)
    if advice not in (Madv.MERGEABLE, Madv.UNMERGEABLE):
        _v6_8["_madvise_vma"](mm, vma, start, end, advice, may_write)
        return
    vm_flags = vma.vm_flags & ~VM_MERGEABLE
    if advice is Madv.MERGEABLE and not vma.vm_flags & (VM_SHARED | VM_MAYSHARE):
        vm_flags |= VM_MERGEABLE
    if vm_flags != vma.vm_flags:
        vma_merge.vma_modify(mm, vma, start, end, vm_flags)


_v6_8: dict[str, Any] = {
    "do_mremap": mremap.do_mremap,
    "_aligned_to_pmd": unmapped_area._aligned_to_pmd,
    "_madvise_vma": madvise._madvise_vma,
    "mmap_region": mmap.mmap_region,
    "handle_mm_fault": fault.handle_mm_fault,
    "wp_page_shared": fault.wp_page_shared,
    "map_pages_around": fault.map_pages_around,
}

KNOWN = (
    Known(
        (6, 16),
        "879bca0a2c4f",
        "A VMA that never faulted merges with one that did; of two neighbours that do not fit each other, new memory "
        "joins the lower one.",
        (
            (vma_merge, "is_mergeable_anon_vma", _is_mergeable_anon_vma),
            (vma_merge, "merge_into_neighbours", _merge_into_neighbours),
            (vma_merge, "vma_modify", _with_source(vma_merge.vma_modify)),
            (mremap, "copy_vma", _with_source(mremap.copy_vma)),
        ),
    ),
    Known(
        (6, 12),
        "f8d112a4e657",
        "mmap over a mapping that fails for want of memory leaves what was there.",
        ((mmap, "mmap_region", _mmap_region),),
    ),
    Known(
        (6, 17),
        "d23cb648e365 and those before it",
        "mremap checks the mapping before it unmaps what is at the new place; with MREMAP_FIXED and the same length it "
        "moves several VMAs; a new length over the address space is EINVAL.",
        ((mremap, "do_mremap", _do_mremap),),
    ),
    Known(
        (6, 12),
        "86e6b1547b3d",
        "An address between the user's half and the middle of all addresses is refused before it is accessed.",
        ((uaccess, "access_ok", _access_ok),),
    ),
    Known(
        (6, 13),
        "d4148aeab412, 249608ee4713",
        "Only anonymous mappings whose length is a multiple of 2 MiB, without a hint, are aligned to 2 MiB.",
        ((unmapped_area, "_aligned_to_pmd", _aligned_to_pmd),),
    ),
    Known(
        (6, 18),
        "74207de2ba10",
        "A read past the end of a regular file maps nothing around it where that begins with the file's last page and "
        "no page table is there yet.",
        ((fault, "handle_mm_fault", _handle_mm_fault), (fault, "map_pages_around", _map_pages_around)),
    ),
    Known(
        (6, 13),
        "22af8caff7d1",
        "process_madvise takes any advice for the caller's own memory, from any user.",
        ((remote, "check_process_madvise", _check_process_madvise),),
    ),
    Known((6, 16), "smaps", "VmFlags shows VM_LOCKONFAULT as lf, where v6.8 shows ??."),
    Known(
        (0, 0),
        "on purpose",
        "The first write to a page of a memory file that was read before takes a minor fault more: kerneld writes "
        "pages back to the file that the process passed, and does so when a mapping goes. With the last one it drops "
        "what it has cached of the file; while the referee runs it keeps that, as Linux does.",
        (
            (fault, "wp_page_shared", _wp_page_shared),
            (munmap, "unmap_vma", _unmap_vma),
            (AddressSpace, "unlink_vma", _unlink_vma),
        ),
    ),
    Known(
        (0, 0),
        "CONFIG_SWAP, CONFIG_KSM, CONFIG_TRANSPARENT_HUGEPAGE",
        "MADV_WILLNEED of anonymous memory succeeds; MADV_MERGEABLE and MADV_UNMERGEABLE set and clear a flag; "
        "MADV_COLLAPSE is known, and refused for each mapping, because the runner turns huge pages off.",
        (
            (madvise, "_madvise_vma", _madvise_vma),
            (madvise, "_VALID", madvise._VALID | {Madv.MERGEABLE, Madv.UNMERGEABLE, Madv.COLLAPSE}),
        ),
        lambda: Path("/sys/kernel/mm/ksm").exists(),
    ),
)


def host_release() -> tuple[int, int]:
    """Return the host kernel's version, as far as differences are counted."""
    match = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def applying() -> list[Known]:
    """Return the differences that this host has."""
    release = host_release()
    return [known for known in KNOWN if known.since <= release and known.applies()]


def normal_flags(flags: tuple[str, ...]) -> tuple[str, ...]:
    """Return a host's VmFlags as v6.8 names them."""
    return tuple(_KNOWN_MAPS_FLAGS.get(flag, flag) for flag in flags)


@contextlib.contextmanager
def following_host() -> Iterator[None]:
    """Let kerneld follow the host's later rules, wherever a module of kerneld has the earlier one by name."""
    undo: list[tuple[Any, str, Any]] = []
    modules = [module for name, module in sys.modules.items() if name.startswith("kerneld.") and module is not None]
    here = sys.modules[__name__]
    for known in applying():
        for owner, name, rule in known.rules:
            earlier = getattr(owner, name)
            if isinstance(owner, type):
                undo.append((owner, name, earlier))
                setattr(owner, name, rule)
            for module in modules:
                if module is not here and module.__dict__.get(name) is earlier:
                    undo.append((module, name, earlier))
                    setattr(module, name, rule)
    try:
        yield
    finally:
        for module, name, earlier in reversed(undo):
            setattr(module, name, earlier)
