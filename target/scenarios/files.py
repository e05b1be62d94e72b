"""A real file in memory: a shared mapping, whose writes reach the file, and a private mapping, whose writes do not."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shared.uapi.mman import Map, Ms
from shared.uapi.page import PAGE_SIZE
from target.scenario import Beats, Note, Scenario, Step
from target.stage import Stage

FILE_NAME = "tour.txt"
"""The name of the real file, in a temporary directory."""
ORIGINAL, CHANGED = "as it was on the disk", "written through memory"
_PAGES = 4


@contextmanager
def open_file(stage: Stage) -> Iterator[tuple[Path, int]]:
    """Write a real file of whole pages; yield its path, and a descriptor of it, open for reading and writing."""
    # Only these scenarios make files, so only here can a killed target leave one.
    with tempfile.TemporaryDirectory(prefix="kerneld-target-", dir=stage.directory) as directory:
        path = Path(directory) / FILE_NAME
        path.write_bytes(b"".join(ORIGINAL.encode().ljust(PAGE_SIZE, b".") for _ in range(_PAGES)))
        descriptor = os.open(path, os.O_RDWR)
        try:
            yield path, descriptor
        finally:
            os.close(descriptor)


def _on_disk(path: Path) -> str:
    """Return the first words of the real file, read from the file and not from memory."""
    return path.read_bytes()[: max(len(ORIGINAL), len(CHANGED))].decode().rstrip(".")


def _map_step(stage: Stage, path: Path, kind: str) -> Step:
    page = stage.window.page
    return Step(
        f"mmap of a real file, {path}, {_PAGES} pages at {page(0):#x}, {kind}. The entries become ALLOCATED but not "
        "ANONYMOUS: there is a file behind them. No frame yet."
    )


def _in_memory(stage: Stage, text: str) -> str:
    """Return the first bytes of the first page as text, as many as `text` has."""
    start = stage.window.page(0)
    return stage.process.mem[start : start + len(text)].decode()


def _play_shared(stage: Stage) -> Beats:
    page, process = stage.window.page, stage.process
    with open_file(stage) as (path, descriptor):
        yield _map_step(stage, path, "MAP_SHARED")
        start = stage.map_in_window(0, _PAGES, flags=Map.SHARED, fd=descriptor)

        yield Step(
            f"The first read, at {page(0):#x}. The kernel reads the file into its page cache and maps the cache's own "
            "frame; pages of the file that lie around it are likely to be wanted next, and may be MAPPED in the same "
            "fault (fault-around)."
        )
        text = _in_memory(stage, ORIGINAL)
        yield Note(f'Memory reads "{text}". Now: {stage.frames(start, _PAGES)}')

        yield Step(
            f"A write to the same page, at {page(0):#x}. The mapping is shared: the write goes to the page cache's "
            "frame, and the entry keeps its pfn. The frame is dirty now: newer than the file."
        )
        stage.store(start, CHANGED)
        yield Note(
            f'Memory reads "{_in_memory(stage, CHANGED)}", the real file "{_on_disk(path)}". Now: '
            f"{stage.frames(start, 1)}"
        )

        yield Step("msync(MS_SYNC): dirty pages are written back. Nothing moves in the table; the real file changes.")
        process.msync(start, _PAGES * PAGE_SIZE, Ms.SYNC)
        yield Note(f'The real file reads "{_on_disk(path)}".')

        yield Step(
            f"munmap: the {_PAGES} entries go to nothing. The frames were the page cache's, which keeps them as "
            "long as anybody maps the file."
        )
        process.munmap(start, _PAGES * PAGE_SIZE)


def _play_private(stage: Stage) -> Beats:
    page, process = stage.window.page, stage.process
    with open_file(stage) as (path, descriptor):
        yield _map_step(stage, path, "MAP_PRIVATE")
        start = stage.map_in_window(0, _PAGES, flags=Map.PRIVATE, fd=descriptor)

        yield Step(f"Reads of the pages {page(0):#x} and {page(1):#x}: both are MAPPED, with the page cache's frames.")
        process.mem.load_u8(page(0))
        process.mem.load_u8(page(1))
        yield Note(f"Now: {stage.frames(start, 2)}")

        yield Step(
            f"A write at {page(0):#x}. The mapping is private: the page cache must not see it, so the kernel copies "
            "the page first and the entry's pfn changes. It is still not ANONYMOUS: that flag speaks of the VMA. "
            f"{page(1):#x} keeps the cache's frame."
        )
        stage.store(start, CHANGED)
        yield Note(f"Now: {stage.frames(start, 2)}")
        yield Note(f'Memory reads "{_in_memory(stage, CHANGED)}", the real file "{_on_disk(path)}".')

        yield Step("munmap: the entries go, and with them the private copy. The real file never knew of it.")
        process.munmap(start, _PAGES * PAGE_SIZE)
        yield Note(f'The real file reads "{_on_disk(path)}".')


FILE_SHARED = Scenario(
    "file-shared",
    "A file in memory, shared",
    "A mapped file is the page cache seen through page-table entries: reads and writes of memory are reads and "
    "writes of the file.",
    _play_shared,
)
FILE_PRIVATE = Scenario(
    "file-private",
    "A file in memory, private",
    "A private file mapping shares the page cache's frames as long as it only reads; the first write to a page "
    "copies it.",
    _play_private,
)
