"""Reads the host's /proc for one process of a program. The files are opened once, and read after every call.

Knows nothing about orders and answers, and nothing about kerneld.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import mmap
import os
import struct
import sys
from pathlib import Path

from kerneld.referee.layout import Layout
from kerneld.referee.numbers import COUNTERS, ProcTexts, parse_numbers, parse_smaps, since, totals
from kerneld.referee.outcome import Mapping, View, add_pages, windows
from shared.uapi.resource import Rlimit

_MADV_COLD = 20
_STAT_END_DATA = 46 - 3
"""The index of the field in /proc/PID/stat after the name."""
_KPF_IDLE = 1 << 25
"""A bit of /proc/kpageflags: Linux v6.8 include/uapi/linux/kernel-page-flags.h."""
_ROLLUP, _STATUS, _STATM, _STAT = "smaps_rollup", "status", "statm", "stat"
_NAMES = ("smaps", "pagemap", _ROLLUP, _STATUS, _STATM, _STAT)


class Drain:
    """Empties this processor's batches of pages, so that the states of these pages are final.

    Source: Linux v6.8 mm/madvise.c:madvise_cold() → mm/swap.c:lru_add_drain(). Both sides run on one processor.
    """

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

    def __call__(self) -> None:
        """Empty the batches."""
        self._page.madvise(_MADV_COLD)


@functools.cache
def has_damon() -> bool:
    """Return whether this host runs DAMON, which clears accessed bits at random times.

    Source: Linux v6.8 mm/damon/paddr.c:damon_pa_mkold(), mm/damon/core.c (the threads' names).
    """
    for comm in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if comm.read_text().startswith("kdamond"):
                return True
    return False


def has_lru_gen(knob: Path = Path("/sys/kernel/mm/lru_gen/enabled")) -> bool:
    """Return whether this host uses the multi-generational LRU, which marks accessed pages in another way.

    Source: Linux v6.8 mm/swap.c:folio_mark_accessed(), CONFIG_LRU_GEN_ENABLED.
    """
    try:
        return int(knob.read_text(), 16) & 1 != 0
    except OSError:
        return False


def is_watched(views: dict[int, View]) -> bool:
    """Return whether DAMON has cleared the accessed bit of a page of these processes: the page is marked as idle."""
    frames = {frame for view in views.values() for frame in view.frames.values()}
    if not frames or not has_damon():
        return False
    with open("/proc/kpageflags", "rb", buffering=0) as flags:
        words = (int.from_bytes(os.pread(flags.fileno(), 8, frame * 8), sys.byteorder) for frame in frames)
        return any(word & _KPF_IDLE for word in words)


class ProcFiles:
    """The files of /proc/PID."""

    def __init__(self, pid: int) -> None:
        """Open the files. The process must be alive."""
        self._fds = {name: os.open(f"/proc/{pid}/{name}", os.O_RDONLY) for name in _NAMES}

    def close(self) -> None:
        """Close the files."""
        for fd in self._fds.values():
            os.close(fd)

    def _texts(self) -> ProcTexts:
        return ProcTexts(*(os.pread(self._fds[name], 1 << 13, 0) for name in _NAMES[2:]))

    def used(self) -> dict[int, int]:
        """Return the bytes of its memory that count for RLIMIT_AS and RLIMIT_DATA, with the runner's own memory."""
        status = parse_numbers(self._texts().status)
        return {Rlimit.AS: status["VmSize"] << 10, Rlimit.DATA: status["VmData"] << 10}

    def totals(self, layout: Layout) -> dict[str, int]:
        """Return the numbers of all its memory, without the runner's own memory as far as that is known."""
        own = [mapping for mapping in parse_smaps(_read_whole(self._fds["smaps"])) if layout.is_taken(mapping)]
        return totals(self._texts(), own)

    def view(self, layout: Layout, start: dict[str, int], uncounted: frozenset[str]) -> View:
        """Return the state of the process's memory.

        `start` has the totals at the start of the program, `uncounted` the names of totals that are not compared.
        """
        mappings: list[Mapping] = []
        own: list[Mapping] = []
        pages: dict[int, int] = {}
        frames: dict[int, int] = {}
        for mapping in parse_smaps(_read_whole(self._fds["smaps"])):
            if layout.is_taken(mapping):
                own.append(mapping)
                continue
            mappings.append(mapping)
            for low, high in windows(mapping.start, mapping.end):
                add_pages(os.pread(self._fds["pagemap"], (high - low) >> 9, low >> 9), low, pages, frames)
        found = since(totals(self._texts(), own), start)
        for name in uncounted:
            found.pop(name, None)
        return View(tuple(mappings), pages, frames, found, _read_page_flags(frames))


def _read_page_flags(frames: dict[int, int]) -> dict[int, int]:
    """Return the word in /proc/kpageflags of each page's frame. Consecutive frames are read together."""
    if not frames:
        return {}
    words: dict[int, int] = {}
    with open("/proc/kpageflags", "rb", buffering=0) as file:
        pfns = sorted(set(frames.values()))
        starts = [i for i, pfn in enumerate(pfns) if i == 0 or pfns[i - 1] != pfn - 1]
        for first, end in itertools.pairwise([*starts, len(pfns)]):
            data = os.pread(file.fileno(), (end - first) * 8, pfns[first] * 8)
            words.update(zip(pfns[first:end], struct.unpack(f"={end - first}Q", data), strict=True))
    return {vaddr: words[pfn] for vaddr, pfn in frames.items()}


def data_bytes(pid: int) -> int:
    """Return end_data - start_data of a process, in bytes. Source: Linux v6.8 fs/proc/array.c:do_task_stat()."""
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return int(fields[_STAT_END_DATA]) - int(fields[_STAT_END_DATA - 1])


def find_uncounted(before: dict[str, int], after: dict[str, int]) -> frozenset[str]:
    """Return the names of counters that are out of date on this host: they do not show a page that came between.

    Source: Linux v6.8 include/linux/mm.h:get_mm_counter() sums up batches only roughly; it is exact where
    fs/proc/task_mmu.c:task_mem() of newer kernels uses get_mm_counter_sum().
    """
    return frozenset(name for name, shown_by in COUNTERS.items() if after[shown_by] == before[shown_by])


def _read_whole(fd: int) -> bytes:
    data = os.pread(fd, 1 << 16, 0)
    chunk = data
    while chunk:
        chunk = os.pread(fd, 1 << 16, len(data))
        data += chunk
    return data
