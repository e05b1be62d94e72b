"""Whether the machine promises more memory than it has.

`Frames.committed_as` counts the promised pages: the pages of all VM_ACCOUNT VMAs, which `MmStruct` adds, and the pages
of shared anonymous memory, which its `AddressSpace` adds. This module only decides whether more may be promised.
Answers to Linux v6.8 mm/util.c:__vm_enough_memory() and Documentation/mm/overcommit-accounting.rst.

| vm.overcommit_memory | refused                                                                    |
|----------------------|----------------------------------------------------------------------------|
| 0, guess             | one request for more than RAM and swap together                            |
| 1, always            | nothing                                                                    |
| 2, never             | a request that brings all promises to the limit less the reserves          |
"""

from __future__ import annotations

import errno

from kerneld.errors import SysError
from kerneld.mm.files.file import File
from kerneld.mm.frames.frames import Frames
from kerneld.mm.limits import OVERCOMMIT_ALWAYS, OVERCOMMIT_GUESS, Sysctl
from kerneld.mm.space.dying import room_after
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.vm_flags import VM_NORESERVE, VM_SHARED, VM_WRITE
from shared.uapi.page import PAGE_SHIFT

_KBYTES_SHIFT = PAGE_SHIFT - 10
_U64 = (1 << 64) - 1


def accountable_mapping(file: File | None, vm_flags: int) -> bool:
    """Return whether a mapping counts as promised memory: it is private and writable, and its file has no account of
    its own (hugetlbfs has one). Source: mm/mmap.c:accountable_mapping().
    """
    if file is not None and file.huge_page_bytes:
        return False
    return vm_flags & (VM_NORESERVE | VM_SHARED | VM_WRITE) == VM_WRITE


def vm_commit_limit(frames: Frames, sysctl: Sysctl) -> int:
    """Return how many pages may be promised with vm.overcommit_memory 2: a share of RAM, and all swap.

    A share below 0 is a very large one, as Linux's unsigned product. Source: Linux v6.8 mm/util.c:vm_commit_limit().
    """
    if sysctl.overcommit_kbytes:
        return (sysctl.overcommit_kbytes >> _KBYTES_SHIFT) + frames.swap.total_pages
    return (frames.total_pages * sysctl.overcommit_ratio & _U64) // 100 + frames.swap.total_pages


def init_reserves(frames: Frames, sysctl: Sysctl) -> None:
    """Set the reserves: for the superuser 1/32 of RAM, at most 8 MiB; against one large process 1/32, at most 128 MiB.

    Source: Linux v6.8 mm/mmap.c:init_admin_reserve() and init_user_reserve().
    """
    share = (frames.total_pages << _KBYTES_SHIFT) // 32
    sysctl.admin_reserve_kbytes = min(share, 8 << 10)
    sysctl.user_reserve_kbytes = min(share, 128 << 10)


def check_enough_memory(mm: MmStruct, pages: int) -> None:
    """Raise SysError(ENOMEM) if `pages` more pages may not be promised to an address space.

    Source: Linux v6.8 mm/util.c:__vm_enough_memory().
    """
    frames, sysctl = mm.frames, mm.sysctl
    if sysctl.overcommit_memory == OVERCOMMIT_ALWAYS:
        return
    if sysctl.overcommit_memory == OVERCOMMIT_GUESS:
        if pages > frames.total_pages + frames.swap.total_pages:
            raise SysError(errno.ENOMEM)
        return
    allowed = vm_commit_limit(frames, sysctl)
    if not mm.is_superusers:
        allowed -= sysctl.admin_reserve_kbytes >> _KBYTES_SHIFT
    allowed -= min(mm.total_vm // 32, sysctl.user_reserve_kbytes >> _KBYTES_SHIFT)
    if frames.may_use_reserve and frames.committed_as - _promised_to_the_dying(frames) + pages < allowed:
        return
    if not room_after(frames, lambda: frames.committed_as + pages < allowed):
        raise SysError(errno.ENOMEM)


def _promised_to_the_dying(frames: Frames) -> int:
    """Return the pages that nobody will ask for: a new client, which could not begin again, does not wait for them."""
    if frames.dying is None:
        return 0
    promised = sum(mm.promised_pages for mm in frames.dying.mms)
    return promised + sum(mapping.accounted_pages for mapping in frames.dying.mappings)
