"""/proc/PID/walk/ADDRESS: one translation as a tree, each level's entry with its bits in words. Linux has no such file.

Owns the words. Reads the tables as the processor does, and changes nothing: no accessed bit is set. Answers to the
Intel SDM, volume 3, chapter 4, and to Linux v6.8 arch/x86/mm/fault.c:dump_pagetable().
"""

from __future__ import annotations

from collections.abc import Iterator

from kerneld.hw.paging import (
    PGD_SHIFT,
    PTE_ACCESSED,
    PTE_DIRTY,
    PTE_NX,
    PTE_PFN_MASK,
    PTE_PRESENT,
    PTE_PROTNONE,
    PTE_PSE,
    PTE_RW,
    PTE_SOFT_DIRTY,
    PTE_SPECIAL,
    PTE_USER,
    PUD_SHIFT,
    pte_pfn,
    pte_pkey,
    pte_present,
    swp_offset,
)
from kerneld.hw.ram import WORDS_SHIFT
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.vm_flags import VM_EXEC, VM_READ, VM_WRITE
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE, PMD_SHIFT, Vaddr

_LEVELS = (("PGD", PGD_SHIFT), ("PUD", PUD_SHIFT), ("PMD", PMD_SHIFT), ("PTE", PAGE_SHIFT))
_BITS = (
    (PTE_PRESENT, "present", "not present"),
    (PTE_RW, "writable", "read-only"),
    (PTE_USER, "user", "kernel only"),
    (PTE_ACCESSED, "accessed", "not accessed"),
    (PTE_DIRTY, "dirty", "clean"),
)
"""Each bit with the words for 1 and for 0."""


def show_walk(mm: MmStruct, vaddr: Vaddr) -> bytes:
    """Return the lines of the walk from CR3 to the page of `vaddr`, any address below the end of user space."""
    return "".join(f"{line}\n" for line in _lines(mm, vaddr)).encode()


def _lines(mm: MmStruct, vaddr: Vaddr) -> Iterator[str]:
    words, root = mm.frames.ram.words, mm.page_table.root
    yield f"CR3       frame {root:#x}: the table of the first level"
    index = root << WORDS_SHIFT
    for depth, (name, shift) in enumerate(_LEVELS):
        slot = vaddr >> shift & 511
        at = index | slot
        entry = words[at]
        indent = "  " * depth
        head = f"{indent}└ {name}[{slot}]"
        is_leaf = shift == PAGE_SHIFT or bool(entry & PTE_PSE)
        yield f"{head:<16}  at {at << 3:#x}  entry {entry:#018x}  {_entry_words(entry, is_leaf=is_leaf, shift=shift)}"
        if not entry & PTE_PRESENT:
            yield from _where_it_stops(mm, vaddr, entry)
            return
        if is_leaf:
            offset = vaddr & (1 << shift) - 1
            physical = (entry & PTE_PFN_MASK & ~((1 << shift) - 1)) | offset
            frame, byte = physical >> PAGE_SHIFT, physical & PAGE_SIZE - 1
            yield f"{vaddr:#x} is physical address {physical:#x}: byte {byte:#x} of frame {frame:#x}"
            return
        index = (entry & PTE_PFN_MASK) >> 3


def _entry_words(entry: int, *, is_leaf: bool, shift: int) -> str:
    if not entry:
        return "empty"
    if not pte_present(entry):
        return f"swap: page {swp_offset(entry)} of the swap file"
    if not entry & PTE_PRESENT and entry & PTE_PROTNONE:
        return f"frame {pte_pfn(entry):#x}, hidden from the processor (PROT_NONE)"
    bits = [is_set if entry & bit else is_clear for bit, is_set, is_clear in _BITS]
    if not is_leaf:
        return f"table in frame {pte_pfn(entry):#x}: {', '.join(bits[:3])}"
    bits.append("no execution" if entry & PTE_NX else "executable")
    if entry & PTE_SOFT_DIRTY:
        bits.append("soft-dirty")
    if entry & PTE_SPECIAL:
        bits.append("special (the zero page)")
    if pte_pkey(entry):
        bits.append(f"protection key {pte_pkey(entry)}")
    size = "a huge page of 2 MiB, " if shift != PAGE_SHIFT else ""
    return f"frame {pte_pfn(entry):#x}: {size}{', '.join(bits)}"


def _where_it_stops(mm: MmStruct, vaddr: Vaddr, entry: int) -> Iterator[str]:
    yield "The walk stops here: an access is a page fault."
    vma = mm.vmas.lookup(vaddr)
    if vma is None:
        yield f"No mapping covers {vaddr:#x}: the access ends in SIGSEGV, unless a stack can grow down to it."
        return
    rights = "".join(
        letter if vma.vm_flags & flag else "-" for letter, flag in (("r", VM_READ), ("w", VM_WRITE), ("x", VM_EXEC))
    )
    what = "anonymous memory" if vma.is_anonymous else "a file or shared memory"
    yield f"The mapping {vma.start:#x}-{vma.end:#x} {rights} covers it, {what}."
    if rights == "---":
        yield "It allows no access: SIGSEGV."
    elif entry:
        yield "The fault reads the page from the swap file."
    else:
        yield "The fault gives the page a frame, if the mapping allows the access."
