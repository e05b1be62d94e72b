"""x86-64 page-table entries and the processor's four-level walk.

    vaddr  47      39 38      30 29      21 20      12 11       0
          |  PGD idx |  PUD idx |  PMD idx |  PTE idx |  offset  |
               9          9          9          9         12

A table is one frame of 512 entries. An entry names the frame of the next table in bits 12 to 51. Owns the bits and the
walk. Knows no process, no VMA, no frame state. Answers to Linux v6.8 arch/x86/include/asm/pgtable_types.h and the
Intel SDM, volume 3, chapter 4.

The entry of a PROT_NONE page keeps its frame. It is not present for the processor, but present for the kernel: bit 8 is
set instead of bit 0, as Linux's _PAGE_PROTNONE. A swap entry has both bits clear and is not zero:

    63   59 58              9 8 7 6 5 4 3 2 1 0
    | type | ~swap offset    |0|0|0|0|0|E|0|S|0|

The offset, a page of the swap file, is inverted as in Linux: a processor that reads the entry in speculation then
gets a physical address beyond all memory. E means that the page belongs only to this address space
(_PAGE_SWP_EXCLUSIVE), S that it is soft-dirty (_PAGE_SWP_SOFT_DIRTY). There is one swap file: type 0. Bits 1 and 9 are
PTE_RW and PTE_SPECIAL in a present entry, and S and a bit of the offset here: check first whether an entry is present.
Answers to Linux v6.8 arch/x86/include/asm/pgtable_64.h.

Bits 59 to 62 of a present leaf entry are the protection key of its page. PKRU (`kerneld.hw.processor`) has two bits for
each key: one denies all accesses to data, the other denies writes. Instruction fetches do not depend on PKRU. Answers
to the Intel SDM, volume 3, 4.6.2.

Differs from Linux: the frame number of a PROT_NONE entry is not inverted (Linux does so against L1TF on real
processors).
"""

from __future__ import annotations

from typing import Any, cast, overload

import numpy as np
import numpy.typing as npt

from kerneld.hw.processor import pkru_allows
from kerneld.hw.ram import WORDS_SHIFT
from kerneld.hw.scalars import u64
from shared.uapi.page import PAGE_SHIFT, PMD_SHIFT, Pfn, Vaddr

PTE_PRESENT = 1 << 0
PTE_RW = 1 << 1
PTE_USER = 1 << 2
PTE_ACCESSED = 1 << 5
PTE_DIRTY = 1 << 6
PTE_PSE = 1 << 7
PTE_PROTNONE = 1 << 8
PTE_SPECIAL = 1 << 9
"""Software bit: the frame is not counted (the shared zero page), as Linux's _PAGE_SPECIAL."""
PTE_UNNOTICED = 1 << 10
"""Software bit of kerneld's: Linux's entry has RW. Here the first write to a file in memory must be noticed."""
PTE_SOFT_DIRTY = 1 << 11
"""Software bit: the page was written, or moved, since soft-dirty bits were last cleared (Linux: _PAGE_SOFT_DIRTY)."""
PTE_PKEY_SHIFT = 59
PTE_PKEY_MASK = 0xF << PTE_PKEY_SHIFT
"""The protection key of a present entry (Linux: _PAGE_PKEY_BIT0 to 3)."""
PTE_NX = 1 << 63
PTE_PFN_MASK = 0x000F_FFFF_FFFF_F000
PTE_TABLE = PTE_PRESENT | PTE_RW | PTE_USER | PTE_ACCESSED | PTE_DIRTY
"""The bits of an entry that points to a table: all rights, so that the leaf decides (Linux: _PAGE_TABLE)."""
PTE_KERNEL_PRESENT = PTE_PRESENT | PTE_PROTNONE

PTE_MKDIRTY = PTE_DIRTY | PTE_SOFT_DIRTY
"""What the kernel sets for a write. The processor sets PTE_DIRTY alone (Linux: pte_mkdirty())."""
PTE_SWP_SOFT_DIRTY = 1 << 1
"""In a swap entry: the page is soft-dirty."""
PTE_SWP_EXCLUSIVE = 1 << 3
"""In a swap entry: the page belongs only to this address space."""
_SWP_OFFSET_FIRST_BIT = 9
_SWP_OFFSET_MASK = (1 << 50) - 1

PTRS_PER_TABLE = 512
_NOTHING, _KERNEL_PRESENT, _SPECIAL = u64(0), u64(PTE_KERNEL_PRESENT), u64(PTE_SPECIAL)
PUD_SHIFT, PGD_SHIFT = 30, 39

PF_PROT, PF_WRITE, PF_USER, PF_INSTR, PF_PK = 0x1, 0x2, 0x4, 0x10, 0x20
"""Page-fault error code bits: X86_PF_* of Linux v6.8 arch/x86/include/asm/trap_pf.h."""


@overload
def pte_pfn(entry: int) -> int: ...
@overload
def pte_pfn(entry: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]: ...
def pte_pfn(entry: Any) -> Any:
    """Return the frame number in an entry, or in each of an array of entries."""
    return (entry & PTE_PFN_MASK) >> PAGE_SHIFT


@overload
def pte_pkey(entry: int) -> int: ...
@overload
def pte_pkey(entry: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]: ...
def pte_pkey(entry: Any) -> Any:
    """Return the protection key in a present entry, or in each of an array of entries."""
    return (entry & PTE_PKEY_MASK) >> PTE_PKEY_SHIFT


def pte_present(entry: int) -> bool:
    """Return whether an entry maps a frame for the kernel; PROT_NONE entries do (Linux: pte_present())."""
    return entry & PTE_KERNEL_PRESENT != 0


def present_mask(entries: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Return pte_present() of each entry."""
    return cast("npt.NDArray[np.bool_]", (entries & _KERNEL_PRESENT) != _NOTHING)


def counted_mask(entries: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Return for each entry whether it is an owner that its frame counts: a present entry that is not special."""
    return cast("npt.NDArray[np.bool_]", present_mask(entries) & ((entries & _SPECIAL) == _NOTHING))


def entry_pfn(entry: int, vaddr: Vaddr) -> Pfn:
    """Return the frame that a leaf entry maps at an address. An entry of 2 MiB (PTE_PSE) names only its first frame."""
    return pte_pfn(entry) + (vaddr >> PAGE_SHIFT & PTRS_PER_TABLE - 1) if entry & PTE_PSE else pte_pfn(entry)


def small_entries(entry: int, first: int, count: int) -> npt.NDArray[np.uint64]:
    """Return the 4 KiB entries that map the pages [first, first + count) of an entry of 2 MiB in the same way."""
    pages = np.arange(first, first + count, dtype=np.uint64)
    return np.uint64(entry & ~PTE_PSE) + (pages << np.uint64(PAGE_SHIFT))


def make_pte(pfn: Pfn, bits: int) -> int:
    """Return the entry that maps a frame with these bits (Linux: pfn_pte())."""
    return pfn << PAGE_SHIFT | bits


@overload
def make_swap_pte(offset: int) -> int: ...
@overload
def make_swap_pte(offset: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]: ...
def make_swap_pte(offset: Any) -> Any:
    """Return the swap entry for a page of the swap file, or one for each of an array (Linux: swp_entry_to_pte())."""
    return (offset ^ _SWP_OFFSET_MASK) << _SWP_OFFSET_FIRST_BIT


@overload
def swp_offset(entry: int) -> int: ...
@overload
def swp_offset(entry: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]: ...
def swp_offset(entry: Any) -> Any:
    """Return the page of the swap file that a swap entry names, or one for each of an array (Linux: swp_offset())."""
    return (entry >> _SWP_OFFSET_FIRST_BIT & _SWP_OFFSET_MASK) ^ _SWP_OFFSET_MASK


def is_swap_pte(entry: int) -> bool:
    """Return whether an entry names a page of the swap file (Linux: is_swap_pte())."""
    return entry != 0 and not entry & PTE_KERNEL_PRESENT


def swap_mask(entries: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Return is_swap_pte() of each entry."""
    return cast("npt.NDArray[np.bool_]", (entries != _NOTHING) & ((entries & _KERNEL_PRESENT) == _NOTHING))


def move_soft_dirty(entries: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return entries of 4 KiB as they are after a move: soft-dirty, so that who looks for changes sees it.

    Source: Linux v6.8 mm/mremap.c:move_soft_dirty_pte().
    """
    marks = np.where((entries & _KERNEL_PRESENT) != _NOTHING, u64(PTE_SOFT_DIRTY), u64(PTE_SWP_SOFT_DIRTY))
    return np.where(entries != _NOTHING, entries | marks, entries)


def table_index(vaddr: Vaddr, shift: int) -> int:
    """Return the index of an address in the table whose entries each map `1 << shift` bytes."""
    return vaddr >> shift & (PTRS_PER_TABLE - 1)


def translate(words: memoryview, root: Pfn, vaddr: Vaddr, access: int, pkru: int = 0) -> int:
    """Translate one user access as the processor does, setting the accessed and dirty bits.

    `root` is the frame in CR3; `access` is 0, PF_WRITE or PF_INSTR; `pkru` is the value of the register PKRU, 0 on a
    processor without protection keys. Returns the physical address in bytes, or the complement (~) of the page-fault
    error code, which is negative. All levels together decide: a write needs RW at every level, a fetch needs NX at no
    level (Intel SDM volume 3, 4.6 and 4.7). The protection key of the leaf may still deny a data access. Pages may have
    4 KiB, 2 MiB or 1 GiB. The function assumes that entries of tables are marked as accessed (PTE_TABLE), and that
    reserved bits are 0, because the kernel writes such entries only.
    """
    entry = rights = words[root << WORDS_SHIFT | vaddr >> PGD_SHIFT & 511]
    no_execute = entry
    for shift in (PUD_SHIFT, PMD_SHIFT, PAGE_SHIFT):
        if not entry & PTE_PRESENT:
            return ~(PF_USER | access)
        index = (entry & PTE_PFN_MASK) >> 3 | vaddr >> shift & 511
        entry = words[index]
        rights &= entry
        no_execute |= entry
        if entry & PTE_PSE:  # In an entry of the last level this bit is PAT, but the walk ends there anyway.
            break
    if not entry & PTE_PRESENT:
        return ~(PF_USER | access)
    if pkru and access != PF_INSTR and rights & PTE_USER and not pkru_allows(pkru, pte_pkey(entry), bool(access)):
        return ~(PF_PROT | PF_USER | PF_PK | access)
    if (
        not rights & PTE_USER
        or (access == PF_WRITE and not rights & PTE_RW)
        or (access == PF_INSTR and no_execute & PTE_NX)
    ):
        return ~(PF_PROT | PF_USER | access)
    wanted = PTE_ACCESSED | PTE_DIRTY if access == PF_WRITE else PTE_ACCESSED
    if entry & wanted != wanted:
        words[index] = entry | wanted
    page_mask = (1 << shift) - 1
    return (entry & PTE_PFN_MASK & ~page_mask) | (vaddr & page_mask)
