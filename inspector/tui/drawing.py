"""The pictures of the terminal: lines of pieces, each a text and the name of its look. Pure.

Every kind of page has a letter as well as a colour, so that a terminal without colours, or an eye that cannot tell
them apart, loses nothing. A large mapping is drawn by half blocks, which have colours only; a key brings the letters.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from itertools import groupby

from inspector.replay import entry_text, vma_name
from shared.recording.address_space import AddressSpace, Vma
from shared.recording.machine import Machine
from shared.recording.physical import Use, entry_pfn, free_blocks, is_swap, mapped_frames, swap_users, uses
from shared.terminal import one_line
from shared.trace.event import PRESENT, PSE, SPECIAL
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE
from shared.uapi.shadowpt import Spte

Piece = tuple[str, str]
Line = list[Piece]
MAX_VMAS = 400
"""A process may have a million. So many are drawn, from the one that is chosen on."""
MAX_CELLS = 2048
HALF_BLOCKS_FROM = 256
"""A mapping of more cells is drawn by half blocks, two cells in one character, where there are colours."""
_UPPER_HALF = "\u2580"
_RW, _ACCESSED, _DIRTY = 0x2, 0x20, 0x40
_SHARED, _LOCKED = 0x8, 0x2000


class Kind(Enum):
    """What a page is; the value is its letter."""

    ALLOCATED = "."
    ZERO = "0"
    ANON = "a"
    FILE = "f"
    SHARED = "s"
    COW = "c"
    SWAPPED = "~"
    HUGE = "H"


WORDS = {
    Kind.ALLOCATED: "allocated: no frame yet", Kind.ZERO: "zero page", Kind.ANON: "anonymous", Kind.FILE: "file",
    Kind.SHARED: "shared", Kind.COW: "copy-on-write", Kind.SWAPPED: "swapped", Kind.HUGE: "huge",
}  # fmt: skip
USE_LETTERS = {
    Use.FREE: ".", Use.PCP: ",", Use.RESERVED: "R", Use.ZERO: "0", Use.TABLE: "T", Use.FILE: "f", Use.SHMEM: "s",
    Use.ANON: "a", Use.SWAP_CACHE: "~", Use.OTHER: "k",
}  # fmt: skip


def size_text(size_bytes: float) -> str:
    """Return a size for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f} {unit}" if size_bytes == int(size_bytes) else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.0f} TiB" if size_bytes == int(size_bytes) else f"{size_bytes:.1f} TiB"


def owners(machine: Machine) -> dict[int, int]:
    """Return by frame how many entries of all address spaces map it, where more than one does."""
    seen: set[int] = set()
    found: dict[int, int] = {}
    for mm in machine.mms.values():
        for first, count, _vaddr, _entry in mapped_frames(mm):
            for pfn in range(first, first + count):
                if pfn in seen:
                    found[pfn] = found.get(pfn, 1) + 1
                seen.add(pfn)
    return found


def kind_of(vma: Vma, entry: int, shared_frames: dict[int, int]) -> Kind:
    """Return what a page of a VMA is."""
    if not entry:
        return Kind.ALLOCATED
    if is_swap(entry):
        return Kind.SWAPPED
    if entry & SPECIAL:
        return Kind.ZERO
    if entry & PSE:
        return Kind.HUGE
    if vma.vm_flags & _SHARED:
        return Kind.SHARED
    if not entry & _RW and entry_pfn(entry) in shared_frames and not vma.mapping:
        return Kind.COW
    return Kind.FILE if vma.mapping and not entry & _RW else Kind.ANON


def cells_of(mm: AddressSpace, vma: Vma, shared_frames: dict[int, int]) -> tuple[list[Kind], int]:
    """Return the kinds of the cells of a VMA, and how many pages one cell stands for: it shows the last mapped one."""
    each = -(-vma.nr_pages // MAX_CELLS)
    cells = [Kind.ALLOCATED] * -(-vma.nr_pages // each)
    for run in mm.runs(vma.start, vma.end):
        first = max(run.vaddr, vma.start)
        last = min(run.vaddr + (run.nr_pages << PAGE_SHIFT), vma.end)
        for vaddr in range(first, last, PAGE_SIZE):
            place = (vaddr - vma.start >> PAGE_SHIFT) // each
            if run.entry & SPECIAL or run.entry & PSE or is_swap(run.entry):
                cells[place] = kind_of(vma, run.entry, shared_frames)
            else:
                entry = run.entry + ((vaddr - run.vaddr) if entry_pfn(run.entry) else 0)
                cells[place] = kind_of(vma, entry, shared_frames)
    return cells, each


def space_lines(
    machine: Machine, mm: AddressSpace | None, width: int, first: int = 0, *, half_blocks: bool = False
) -> Iterator[Line]:
    """Yield the address space: each VMA from number `first` on, with a heat map of its pages; gaps are folded.

    With `half_blocks` large VMAs are drawn by half blocks.
    """
    if mm is None:
        yield [("This process has no memory at this moment.", "quiet")]
        return
    shared_frames = owners(machine)
    vmas = [vma for _start, vma in sorted(mm.vmas.items())]
    before: Vma | None = vmas[first - 1] if 0 < first <= len(vmas) else None
    for vma in vmas[first : first + MAX_VMAS]:
        if before is not None and before.end < vma.start:
            yield [(f"      ┊ {size_text(vma.start - before.end)} without a mapping", "quiet")]
        cells, each = cells_of(mm, vma, shared_frames)
        mapped = sum(run.nr_pages for run in mm.runs(vma.start, vma.end) if run.entry & PRESENT)
        rights = "".join(letter if vma.vm_flags & bit else "-" for bit, letter in ((1, "r"), (2, "w"), (4, "x")))
        shared = "s" if vma.vm_flags & 0x80 else "p"
        locked = " locked" if vma.vm_flags & _LOCKED else ""
        name = vma_name(machine, mm, vma)
        yield [
            (f"{vma.start:#x}-{vma.end:#x} ", "address"), (f"{rights}{shared} ", "rights"),
            (f"{vma.nr_pages} pages, {mapped} mapped{locked}", ""), (f"  {name}" if name else "", "name"),
        ]  # fmt: skip
        if each > 1:
            yield [(f"  a cell is {each} pages", "quiet")]
        draw = half_block_map if half_blocks and len(cells) > HALF_BLOCKS_FROM else heat_map
        yield from draw(cells, max(8, width - 2))
        before = vma
    left = len(vmas) - first - MAX_VMAS
    if left > 0:
        yield [(f"… {left} more mappings", "quiet")]


def heat_map(cells: list[Kind], width: int) -> Iterator[Line]:
    """Yield lines of cells, each a letter in its colour."""
    for at in range(0, len(cells), width):
        line: Line = [("  ", "")]
        start = at
        end = min(at + width, len(cells))
        while start < end:
            stop = start + 1
            while stop < end and cells[stop] is cells[start]:
                stop += 1
            line.append((cells[start].value * (stop - start), f"page-{cells[start].name.lower()}"))
            start = stop
        yield line


def half_block_map(cells: list[Kind], width: int) -> Iterator[Line]:
    """Yield lines of two rows of cells: a half block has the colour of the upper one, what is behind it of the lower.

    The look of a piece is `half-UPPER-LOWER`; LOWER is `none` below the last row.
    """
    for at in range(0, len(cells), 2 * width):
        upper, lower = cells[at : at + width], cells[at + width : at + 2 * width]
        pairs = [(kind, lower[place] if place < len(lower) else None) for place, kind in enumerate(upper)]
        line: Line = [("  ", "")]
        for pair, same in groupby(pairs):
            names = [kind.name.lower() if kind else "none" for kind in pair]
            line.append((_UPPER_HALF * len(list(same)), f"half-{names[0]}-{names[1]}"))
        yield line


def legend() -> Line:
    """Return what the letters mean."""
    return [
        piece for kind in Kind for piece in ((kind.value, f"page-{kind.name.lower()}"), (f" {WORDS[kind]}  ", "quiet"))
    ]


def memory_lines(machine: Machine, width: int) -> Iterator[Line]:
    """Yield physical memory: how many frames are used for what, the free blocks by order, swap, and a map of frames."""
    if not machine.nr_frames:
        yield [
            (
                "Physical memory is not in this record: it is for the superuser, and for a record of all processes.",
                "quiet",
            )
        ]
        return
    kinds = uses(machine)
    totals = {use: kinds.count(use) for use in Use}
    words = [
        (f"{USE_LETTERS[use]} {use.value} {number}   ", f"use-{use.name.lower()}")
        for use, number in totals.items()
        if number
    ]
    yield [("Frames  ", "address"), *words]
    by_order = [0] * 11
    for _pfn, order in free_blocks(machine):
        by_order[order] += 1
    yield [("Free blocks by order  ", "address"), ("  ".join(f"{order}:{n}" for order, n in enumerate(by_order)), "")]
    if machine.nr_slots:
        used = swap_users(machine)
        yield [("Swap  ", "address"), (f"{len(used)} of {machine.nr_slots - 1} slots are in use", "")]
    each = -(-len(kinds) // (max(8, width - 2) * 64))
    if each > 1:
        yield [(f"  a cell is {each} frames", "quiet")]
    cells = [_most(kinds[at : at + each]) for at in range(0, len(kinds), each)]
    for at in range(0, len(cells), max(8, width - 2)):
        row = cells[at : at + max(8, width - 2)]
        yield [("  ", ""), *((USE_LETTERS[use], f"use-{use.name.lower()}") for use in row)]


def _most(kinds: list[Use]) -> Use:
    """Return a use of these frames that is not free, if there is one."""
    return next((use for use in kinds if use not in (Use.FREE, Use.PCP)), kinds[0])


def shadow_lines(machine: Machine) -> Iterator[Line]:
    """Yield the shadow page table exactly as the inspector's memory holds it."""
    shadow = machine.shadow
    if shadow is None:
        yield [("No shadow page table is open at this moment.", "quiet")]
        return
    state = "started" if shadow.is_tracking else "stopped"
    head = f"Target {shadow.target}, opened by {shadow.opener}, {state}: {shadow.start:#x}-{shadow.end:#x}"
    yield [(head, "address")]
    yield [("vaddr             pfn          state_flags", "quiet")]
    for index, (flags, pfn) in enumerate(zip(shadow.flags, shadow.pfns, strict=True)):
        names = " ".join(flag.name or "" for flag in Spte if flags & flag)
        vaddr = shadow.start + (index << PAGE_SHIFT)
        yield [(f"{vaddr:#014x}    {pfn:#010x}   {flags:#x} ", ""), (names, "name")]


def process_lines(machine: Machine, chosen: int, viewer: int) -> Iterator[tuple[int, Line]]:
    """Yield pid and line of each process, children under their parents, with the resident pages."""
    tasks = {pid: task for pid, task in machine.tasks.items() if pid != viewer}
    children: dict[int, list[int]] = {}
    for pid, task in sorted(tasks.items()):
        children.setdefault(task.ppid if task.ppid in tasks and task.ppid != pid else 0, []).append(pid)
    stack = [(pid, 0) for pid in reversed(children.get(0, []))]
    while stack:
        pid, depth = stack.pop()
        task = tasks[pid]
        mm = machine.mms.get(task.mm)
        rss = "ended" if mm is None else f"{mm.rss[0] + mm.rss[1] + mm.rss[3]}p"
        look = "chosen" if pid == chosen else "quiet" if mm is None else ""
        yield (
            pid,
            [(f"{'▸' if pid == chosen else ' '}{' ' * min(depth, 6)}{pid} {one_line(task.comm)[:12]} {rss}", look)],
        )
        stack += [(child, depth + 1) for child in reversed(children.get(pid, []))]


def entry_line(machine: Machine, mm: AddressSpace, vaddr: int) -> Line:
    """Return what a page is, in words."""
    vma = mm.find_vma(vaddr)
    if vma is None:
        return [(f"{vaddr:#x}: no mapping", "quiet")]
    return [(f"{vaddr:#x} ", "address"), (entry_text(mm.entry(vaddr)), ""), (f"  {vma_name(machine, mm, vma)}", "name")]
