"""What the host really maps of the RAM in a process, compared with the page table: frame by frame, right by right."""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path
from typing import NamedTuple

from shared.client import Process
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE

_WORD = struct.Struct("<Q")
PRESENT, RW, USER, ACCESSED, DIRTY, LARGE, NX = 1 << 0, 1 << 1, 1 << 2, 1 << 5, 1 << 6, 1 << 7, 1 << 63
FRAME = 0x000F_FFFF_FFFF_F000


class Mapped(NamedTuple):
    """One page of a process that the host maps to a frame."""

    vaddr: int
    pfn: int
    rights: str


def mapped_pages(pid: int) -> list[Mapped]:
    """Return every page outside the stub that the host maps in a process; each is of the RAM's file."""
    pages = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        bounds, rights, offset, _, _, *name = line.split(maxsplit=5)
        start, end = (int(bound, 16) for bound in bounds.split("-"))
        if 0x6A00_0000_0000 <= start < 0x6A80_0000_0000 or name == ["[vsyscall]"]:
            continue
        assert name[0].startswith("/memfd:kerneld-ram"), line
        first = int(offset, 16) >> PAGE_SHIFT
        pages += [Mapped(vaddr, first + number, rights) for number, vaddr in enumerate(range(start, end, PAGE_SIZE))]
    return pages


def exceeding_pages(pid: int, inspector: Process) -> list[Mapped]:
    """Return the pages of which the host grants more than the page table does; `inspector` is the superuser's."""
    cr3, fd = inspector.ram(pid)
    with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as ram:
        os.close(fd)
        wrong = []
        for page in mapped_pages(pid):
            entry = _leaf_entry(ram, cr3, page.vaddr)
            needed = PRESENT | USER | ACCESSED | (RW | DIRTY if "w" in page.rights else 0)
            if (
                entry & needed != needed
                or (entry & FRAME) >> PAGE_SHIFT != page.pfn
                or ("x" in page.rights and entry & NX)
            ):
                wrong.append(page)
    return wrong


def _leaf_entry(ram: mmap.mmap, cr3: int, vaddr: int) -> int:
    """Return the entry of 4 KiB for an address, as the Intel SDM has it walked; a part of one of 2 MiB as such."""
    table = cr3
    for shift in (39, 30, 21, 12):
        (entry,) = _WORD.unpack_from(ram, table + 8 * (vaddr >> shift & 511))
        if shift == 12 or not entry & PRESENT:
            return int(entry)
        if entry & LARGE:
            return int(entry & ~LARGE) + (vaddr & (1 << shift) - 1 & ~(PAGE_SIZE - 1))
        table = entry & FRAME
    raise AssertionError
