"""The walk of an address: 9 + 9 + 9 + 9 + 12 bits, the four tables, each level's entry, and where it stops. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from inspector.replay import entry_text
from inspector.tui.drawing import Line
from shared.recording.address_space import AddressSpace
from shared.recording.physical import is_swap
from shared.trace.event import PRESENT, PSE
from shared.uapi.page import PAGE_SHIFT

_LEVELS = ((4, "PGD", 39), (3, "PUD", 30), (2, "PMD", 21), (1, "PTE", 12))
_BITS = (
    (0, "present"), (1, "writable"), (2, "user"), (5, "accessed"), (6, "dirty"), (7, "huge"), (8, "PROT_NONE"),
    (9, "special"), (63, "no execute"),
)  # fmt: skip
_TABLE_BITS = 0x67


def bits_text(entry: int) -> str:
    """Return the names of the bits of an entry that are set."""
    return " ".join(name for bit, name in _BITS if entry >> bit & 1)


def walk_lines(mm: AddressSpace | None, vaddr: int) -> Iterator[Line]:
    """Yield the walk of an address down the tables of an address space."""
    yield [(f"{vaddr:#x}", "address")]
    yield [("  PGD index  PUD index  PMD index  PTE index  offset", "quiet")]
    parts = [f"{vaddr >> shift & 511:09b}" for _level, _name, shift in _LEVELS]
    yield [("  " + "  ".join(parts) + f"  {vaddr & 0xFFF:012b}", "")]
    yield [("  " + "  ".join(f"{vaddr >> shift & 511:>9}" for _l, _n, shift in _LEVELS) + f"  {vaddr & 0xFFF:>12}", "")]
    if mm is None:
        yield [("This process has no memory at this moment.", "quiet")]
        return
    for level, name, shift in _LEVELS:
        yield from _level_lines(mm, vaddr, level, name, shift)
        if not _goes_on(mm, vaddr, level):
            return


def _table(mm: AddressSpace, vaddr: int, level: int) -> int | None:
    """Return the frame of the table of a level on the way to an address; None if there is none."""
    start = vaddr & -(1 << PAGE_SHIFT + 9 * level) if level < 4 else 0
    return mm.tables.get((level, start))


def _goes_on(mm: AddressSpace, vaddr: int, level: int) -> bool:
    return level > 1 and _table(mm, vaddr, level - 1) is not None


def _level_lines(mm: AddressSpace, vaddr: int, level: int, name: str, shift: int) -> Iterator[Line]:
    table = _table(mm, vaddr, level)
    index = vaddr >> shift & 511
    where = f"{name} table" + (f" in frame {table:#x}" if table else "") + f", entry {index}: "
    below = _table(mm, vaddr, level - 1) if level > 1 else None
    if below is not None:
        entry = below << PAGE_SHIFT | _TABLE_BITS
        yield [(where, "address"), (f"the {_LEVELS[5 - level][1]} table in frame {below:#x}", "")]
        yield [(f"    {bits_text(entry)}", "quiet")]
        return
    entry = mm.entry(vaddr) if level == 1 or (level == 2 and mm.huge.get(vaddr >> 21)) else 0
    yield [(where, "address"), (entry_text(entry) if entry else "empty", "")]
    if entry and not is_swap(entry):
        yield [(f"    {bits_text(entry)}", "quiet")]
    yield [("  " + _why_it_stops(mm, vaddr, entry, level), "name")]


def _why_it_stops(mm: AddressSpace, vaddr: int, entry: int, level: int) -> str:
    if entry & PRESENT:
        return (
            "The walk ends here: a huge page."
            if entry & PSE and level == 2
            else "The walk ends here: the page's frame."
        )
    if entry:
        return "The walk stops: the page is in the swap file. An access faults and reads it in."
    if mm.find_vma(vaddr) is None:
        return "The walk stops: no mapping covers this address. An access faults: SIGSEGV."
    if level > 1:
        return "The walk stops: there is no table below. An access faults; the tables are made then."
    return "The walk stops: the page has no frame yet. An access faults; memory comes then."
