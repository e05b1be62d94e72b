"""A huge page: one entry that maps 2 MiB, and what splits it."""

from __future__ import annotations

from shared.uapi.mman import Madv, Map
from shared.uapi.page import PAGE_SIZE, PMD_SIZE
from target.scenario import Beats, Note, Scenario, Step, Watch
from target.stage import PRIVATE_ANONYMOUS, READ_WRITE, WINDOW_START, Stage

START = WINDOW_START + (1 << 30)
"""Beside the window, and aligned to 2 MiB."""
_BYTES = 2 * PMD_SIZE


def _play(stage: Stage) -> Beats:
    process = stage.process
    second, hole = START + PMD_SIZE, START + 7 * PAGE_SIZE
    yield Watch(process.pid, START, START + _BYTES, "room for two huge pages")

    yield Step(
        f"mmap 4 MiB at {START:#x}, and madvise(MADV_HUGEPAGE): the kernel may map this range by huge pages. 1024 "
        "entries are ALLOCATED and ANONYMOUS."
    )
    process.mmap(START, _BYTES, READ_WRITE, PRIVATE_ANONYMOUS | Map.FIXED_NOREPLACE)
    process.madvise(START, _BYTES, Madv.HUGEPAGE)
    yield from _touch(stage, second, hole)

    yield Step("munmap: the 1024 entries lose flags and pfn.")
    process.munmap(START, _BYTES)


def _touch(stage: Stage, second: int, hole: int) -> Beats:
    process = stage.process
    yield Step(
        f"A write of one byte at {START:#x}. One fault, and 512 pages are MAPPED, with frames in a row: one entry in "
        "the table above the last one (PMD) maps all 2 MiB. A translation takes one step less."
    )
    process.mem.store_u8(START, 1)
    yield Note(f"The first pages: {stage.frames(START, 3)}. The last: {stage.frames(second - PAGE_SIZE, 1)}.")
    yield Note(f"`kerneld walk {process.pid} {hole:#x}` shows where the walk ends.")

    yield Step(
        f"madvise(MADV_DONTNEED) of one small page, {hole:#x}. A huge page can only be mapped as a whole: the kernel "
        "splits it into 512 entries of the same frames first. One entry loses its frame; 511 stay as they are."
    )
    process.madvise(hole, PAGE_SIZE, Madv.DONTNEED)
    yield Note(f"Around it: {stage.frames(hole - PAGE_SIZE, 3)}.")

    yield Step(
        f"A read at {second:#x}, in the second half. Nothing is written there: the 512 entries are MAPPED to the huge "
        "zero page, 2 MiB of zeros that all such reads share."
    )
    process.mem.load_u8(second)
    yield Note(f"The first pages: {stage.frames(second, 3)}.")


HUGE = Scenario(
    "huge",
    "Huge pages",
    "A huge page is 2 MiB of memory by one entry: 512 faults less, and one step less in each translation.",
    _play,
    in_window=False,
)
