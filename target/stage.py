"""The stage of a scenario: the process, the window of addresses for its mappings, the directory for its real files.

The window is a fixed range in which a new process has no mappings. So one inspector, started once, shows most of the
tour, and its table is empty at first. Knows no scenario and prints nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shared.client import Process
from shared.uapi.mman import Map, Prot
from shared.uapi.page import PAGE_SIZE
from target.proc_maps import read_maps, read_pfns

WINDOW_START = 64 << 30
"""64 GiB: above the heap of a program that is loaded low, and far below the mmap area, which is filled from the top."""
WINDOW_PAGES = 16

READ_WRITE = Prot.READ | Prot.WRITE
PRIVATE_ANONYMOUS = Map.PRIVATE | Map.ANONYMOUS


@dataclass(frozen=True, slots=True)
class Window:
    """The range [start, end) that most scenarios map in."""

    start: int = WINDOW_START
    pages: int = WINDOW_PAGES

    @property
    def end(self) -> int:
        """The first address after the window."""
        return self.page(self.pages)

    def page(self, index: int) -> int:
        """Return the address of the window's page `index`."""
        return self.start + index * PAGE_SIZE


@dataclass(frozen=True, slots=True)
class Stage:
    """A process, its window, and a directory for real files. A scenario removes the files that it makes."""

    process: Process
    window: Window
    directory: Path

    def map_in_window(
        self, index: int, pages: int, prot: Prot = READ_WRITE, flags: Map = PRIVATE_ANONYMOUS, fd: int = -1
    ) -> int:
        """Map `pages` pages at the window's page `index` and return the address. Raises OSError as mmap does."""
        address = self.window.page(index)
        return self.process.mmap(address, pages * PAGE_SIZE, prot, flags | Map.FIXED_NOREPLACE, fd)

    def map_and_write(self, pages: int, text: str) -> int:
        """Map the window's first `pages` pages, write `text` to each, and return the address. Raises OSError."""
        start = self.map_in_window(0, pages)
        for index in range(pages):
            self.store(self.window.page(index), text)
        return start

    def window_lines(self) -> list[str]:
        """Return the lines of /proc/self/maps that lie in the window."""
        window = self.window
        return [m.line for m in read_maps(self.process) if m.start < window.end and m.end > window.start]

    def clear_window(self) -> None:
        """Unmap whatever is in the window."""
        self.process.munmap(self.window.start, self.window.pages * PAGE_SIZE)

    def frames(self, start: int, pages: int) -> str:
        """Return the frames of `pages` pages from `start` in words, from the process's own pagemap."""
        pfns = read_pfns(self.process, start, pages)
        return ", ".join(f"pfn {pfn:#x}" if pfn else "no frame" for pfn in pfns)

    def store(self, address: int, text: str) -> None:
        """Write `text` at `address`, as a program's own stores do."""
        data = text.encode()
        self.process.mem[address : address + len(data)] = data
