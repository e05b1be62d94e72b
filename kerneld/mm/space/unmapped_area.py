"""The choice of an address for a new mapping, if the program leaves it to the kernel.

Knows no page table. Answers to Linux v6.8 mm/mmap.c:get_unmapped_area(), arch/x86/kernel/sys_x86_64.c and
mm/huge_memory.c:thp_get_unmapped_area().
"""

from __future__ import annotations

import errno

from kerneld.errors import SysError
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.vma import vm_start_gap
from shared.uapi.mman import Map
from shared.uapi.page import PAGE_MASK, PAGE_SIZE, PMD_SIZE, TASK_SIZE, Vaddr, page_align

TASK_UNMAPPED_BASE = page_align(TASK_SIZE // 3)
"""Start of the search upwards, which is made if no space is left below mmap_base, or if the layout is bottom-up."""
_FIXED, _BIT32 = Map.FIXED.value, Map.BIT32.value
_LAST_ERR_VALUE = (1 << 64) - 4096
_BIT32_LOW, _BIT32_HIGH = 0x4000_0000, 0x8000_0000


def round_hint_to_min(mm: MmStruct, hint: Vaddr) -> Vaddr:
    """Round a hint down to a page, and up to vm.mmap_min_addr unless it is 0. Source: mm/mmap.c:round_hint_to_min()."""
    hint &= PAGE_MASK
    if hint and hint < mm.sysctl.lowest_chosen_addr:
        return page_align(mm.sysctl.lowest_chosen_addr)
    return hint


def get_unmapped_area(
    mm: MmStruct,
    addr: Vaddr,
    length: int,
    flags: int,
    *,
    pmd_aligned: bool = False,
    offset: int | None = None,
    raw_io: bool = False,
    accessible: bool = True,
) -> Vaddr:
    """Return the address for a mapping of `length` bytes (page-aligned).

    `addr` is a hint, or with MAP_FIXED the address itself. `pmd_aligned` asks for a 2 MiB-aligned address if the
    mapping is that long (anonymous private memory, files on disk); for a file, 2 MiB boundaries of the file (`offset`,
    in bytes) then lie on 2 MiB boundaries of memory. `raw_io` is CAP_SYS_RAWIO, which allows addresses below
    vm.mmap_min_addr. Memory that nobody can access may have a fixed address in the reserved range.
    Raises SysError(ENOMEM) if no range is free, or a fixed one meets the reserved range; SysError(EINVAL) for an
    unaligned fixed address; SysError(EPERM) below vm.mmap_min_addr.
    """
    if length > TASK_SIZE:
        raise SysError(errno.ENOMEM)
    found = _aligned_to_pmd(mm, addr, length, flags, offset) if pmd_aligned else None
    if found is None:
        found = _topdown(mm, addr, length, flags)
    if found > _LAST_ERR_VALUE:
        # Linux takes such a high fixed address for an errno of the search (IS_ERR_VALUE()).
        raise SysError((1 << 64) - found)
    if found > TASK_SIZE - length or (accessible and meets_reserved(mm, found, length)):
        raise SysError(errno.ENOMEM)
    if found & ~PAGE_MASK:
        raise SysError(errno.EINVAL)
    if found < mm.sysctl.mmap_min_addr and not raw_io:
        raise SysError(errno.EPERM)
    return found


def _aligned_to_pmd(mm: MmStruct, addr: Vaddr, length: int, flags: int, offset: int | None) -> Vaddr | None:
    """Source: Linux v6.8 mm/huge_memory.c:__thp_get_unmapped_area(): a free hint is used without alignment."""
    start = offset or 0
    first_boundary = start + (-start & (PMD_SIZE - 1))
    if start + length < first_boundary + PMD_SIZE or flags & _FIXED:
        return None
    try:
        found = _topdown(mm, addr, length + PMD_SIZE, flags)
    except SysError:
        return None
    if found == addr:
        return found
    # If the address is on a boundary, a search from the top uses the next one, the higher one.
    return found + ((start - found & (PMD_SIZE - 1)) or (0 if mm.is_bottom_up else PMD_SIZE))


def _topdown(mm: MmStruct, addr: Vaddr, length: int, flags: int) -> Vaddr:
    """Source: Linux v6.8 arch/x86/kernel/sys_x86_64.c:arch_get_unmapped_area_topdown(), arch_get_unmapped_area()."""
    if length > TASK_SIZE:
        raise SysError(errno.ENOMEM)
    if flags & _FIXED:
        return addr
    if addr:
        # A hint may lie below where the search of MAP_32BIT starts, but not above where it ends.
        addr &= PAGE_MASK
        vma = mm.vmas.find(addr)
        limit = _BIT32_HIGH if flags & _BIT32 else TASK_SIZE
        is_free = vma is None or addr + length <= vm_start_gap(vma)
        if addr <= limit - length and is_free and not meets_reserved(mm, addr, length):
            return addr
    found = mm.vmas.find_gap_above(_BIT32_LOW, _BIT32_HIGH, length) if flags & _BIT32 else _find_gap(mm, length)
    if found is None:
        raise SysError(errno.ENOMEM)
    return found


def _find_gap(mm: MmStruct, length: int) -> Vaddr | None:
    """Return a free range below mmap_base, else one above it; the reserved range is like a mapping.

    In a bottom-up layout only the search upwards is made.
    """
    start, end = mm.reserved
    downwards = [(PAGE_SIZE, mm.mmap_base)] if not end else [(end, mm.mmap_base), (PAGE_SIZE, min(start, mm.mmap_base))]
    for low, high in () if mm.is_bottom_up else downwards:
        found = mm.vmas.find_gap_below(low, high, length) if high - low >= length else None
        if found is not None:
            return found
    upwards = [(TASK_UNMAPPED_BASE, TASK_SIZE)] if not end else [(TASK_UNMAPPED_BASE, start), (end, TASK_SIZE)]
    for low, high in upwards:
        found = mm.vmas.find_gap_above(low, high, length)
        if found is not None:
            return found
    return None


def meets_reserved(mm: MmStruct, start: Vaddr, length: int) -> bool:
    """Return whether a range meets the reserved range of an address space (`MmStruct.reserved`)."""
    low, high = mm.reserved
    return start < high and start + length > low
