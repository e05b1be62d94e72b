"""Reads the host's /proc (`proc_files`) for one process of a program. The files are opened once, read after every call.

A `Reading` is what was read, as it stands there: the runner may be on a slow machine, and another machine parses it.
Knows nothing about orders and answers, and nothing about kerneld.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import mmap
import struct
from pathlib import Path
from typing import NamedTuple

from kerneld.referee.layout import Layout
from kerneld.referee.numbers import COUNTERS, ProcTexts, parse_maps, parse_numbers, parse_smaps, since, totals
from kerneld.referee.outcome import Mapping, View, add_pages, find_frames, near_together, windows, words_of
from kerneld.referee.proc_files import MOST_BYTES, Part, ProcSource, read_file, read_on
from kerneld.referee.rights import sees_frames
from shared.uapi.resource import Rlimit

_MADV_COLD = 20
_STAT_END_DATA = 46 - 3
"""The index of the field in /proc/PID/stat after the name."""
_KPF_IDLE = 1 << 25
"""A bit of /proc/kpageflags: Linux v6.8 include/uapi/linux/kernel-page-flags.h."""
_ROLLUP, _STATUS, _STATM, _STAT = "smaps_rollup", "status", "statm", "stat"
_TEXTS = (_ROLLUP, _STATUS, _STATM, _STAT)
_NAMES = ("smaps", "maps", "pagemap", *_TEXTS)


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
def has_damon(proc: Path = Path("/proc"), admin: Path = Path("/sys/kernel/mm/damon/admin/kdamonds")) -> bool:
    """Return whether this host runs DAMON, which clears accessed bits at random times.

    A PID namespace hides its threads. Then the files under /sys tell it, or hide from this user what they tell.
    Source: Linux v6.8 mm/damon/paddr.c:damon_pa_mkold(), mm/damon/core.c (the threads' names), mm/damon/sysfs.c.
    """
    for comm in proc.glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if comm.read_text().startswith("kdamond"):
                return True
    return any(_is_on(kdamond) for kdamond in admin.glob("[0-9]*"))


def _is_on(kdamond: Path) -> bool:
    try:
        return (kdamond / "state").read_text() == "on\n"
    except PermissionError:
        return True
    except OSError:
        return False


def has_lru_gen(knob: Path = Path("/sys/kernel/mm/lru_gen/enabled")) -> bool:
    """Return whether this host uses the multi-generational LRU, which marks accessed pages in another way.

    Source: Linux v6.8 mm/swap.c:folio_mark_accessed(), CONFIG_LRU_GEN_ENABLED.
    """
    try:
        return int(knob.read_text(), 16) & 1 != 0
    except OSError:
        return False


def runs_ksm(knob: Path = Path("/sys/kernel/mm/ksm/run")) -> bool:
    """Return whether this host merges equal pages. Source: Linux v6.8 mm/ksm.c:run_show()."""
    try:
        return knob.read_text().strip() == "1"
    except OSError:
        return False


def has_idle_pages(views: dict[int, View]) -> bool:
    """Return whether a page of these processes is marked as idle: DAMON has cleared its accessed bit."""
    return any(word & _KPF_IDLE for view in views.values() for word in view.page_flags.values())


class Reading(NamedTuple):
    """What the host's /proc says of a process at one moment."""

    smaps: bytes
    """Or maps, if only a part is compared now: then `texts` has no rollup."""
    texts: ProcTexts
    words: tuple[tuple[int, bytes], ...]
    """By address, the words of pagemap from there on. A range without any is left out."""
    page_flags: dict[int, int]
    """By frame, the word in kpageflags of each mapped page."""
    mappings: tuple[Mapping, ...]
    """Parsed from smaps, without the runner's own."""
    own: tuple[Mapping, ...]
    """The runner's own."""

    @classmethod
    def parse(
        cls, layout: Layout, smaps: bytes, texts: ProcTexts, words: tuple[tuple[int, bytes], ...], flags: dict[int, int]
    ) -> Reading:
        """Return the reading of these texts."""
        return cls(smaps, texts, words, flags, *_divide(layout, smaps, whole=bool(texts.rollup)))

    def totals(self) -> dict[str, int]:
        """Return the numbers of all its memory, without the runner's own memory as far as that is known."""
        return totals(self.texts, self.own)

    def used(self) -> dict[int, int]:
        """Return the bytes of its memory that count for RLIMIT_AS and RLIMIT_DATA, with the runner's own memory."""
        status = parse_numbers(self.texts.status)
        return {Rlimit.AS: status["VmSize"] << 10, Rlimit.DATA: status["VmData"] << 10}

    def view(self, start: dict[str, int], uncounted: frozenset[str]) -> View:
        """Return the state of the process's memory.

        `start` has the totals at the start of the program, `uncounted` the names of totals that are not compared.
        """
        pages: dict[int, int] = {}
        frames: dict[int, int] = {}
        for low, words in self.words:
            add_pages(words, low, pages, frames)
        found = since(self.totals(), start)
        for name in uncounted:
            found.pop(name, None)
        if not self.page_flags:
            # Who may not read kpageflags compares no frames, even if pagemap shows them (a kerneld's pagemap).
            frames = {}
        flags = {vaddr: self.page_flags[pfn] for vaddr, pfn in frames.items()}
        return View(self.mappings, pages, frames, found, flags)


def _divide(layout: Layout, text: bytes, *, whole: bool) -> tuple[tuple[Mapping, ...], tuple[Mapping, ...]]:
    """Return the program's mappings of a text of smaps, or maps, and the runner's."""
    mappings: list[Mapping] = []
    own: list[Mapping] = []
    for mapping in parse_smaps(text) if whole else parse_maps(text):
        (own if layout.is_taken(mapping) else mappings).append(mapping)
    return tuple(mappings), tuple(own)


class ProcFiles:
    """The files of /proc/PID."""

    def __init__(self, source: ProcSource, pid: int) -> None:
        """Open the files. The process must be alive."""
        self._source = source
        self._files = {name: source.open(f"{pid}/{name}") for name in _NAMES}
        self._page_flags = source.open("kpageflags") if sees_frames() else None

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()
        if self._page_flags is not None:
            self._page_flags.close()

    def read(self, layout: Layout, *, whole: bool = True) -> Reading:
        """Read the state of the process's memory, or the part of it that is compared after every operation."""
        names = _TEXTS if whole else _TEXTS[1:]
        mappings_file = self._files["smaps" if whole else "maps"]
        parts = [Part(self._files[name], 1 << 13, 0) for name in names]
        text, *texts = self._source.read([Part(mappings_file, MOST_BYTES, 0), *parts])
        text = read_on(mappings_file, text)
        mappings, own = _divide(layout, text, whole=whole)
        places = [place for mapping in mappings for place in windows(mapping.start, mapping.end)]
        ranges = near_together(places)
        found = self._source.read([Part(self._files["pagemap"], (high - low) >> 9, low >> 9) for low, high in ranges])
        # The highest byte of a word has the state of its page. Without it, no page is there.
        words = [(low, data) for low, data in words_of(places, ranges, found) if any(data[7::8])]
        flags = self._read_page_flags(find_frames(words)) if whole else {}
        texts = texts if whole else [b"", *texts]
        return Reading(text, ProcTexts(*texts), tuple(words), flags, mappings, own)

    def _read_page_flags(self, pfns: list[int]) -> dict[int, int]:
        """Return the word in kpageflags of each frame, in ascending order. Consecutive frames are read together."""
        words: dict[int, int] = {}
        if not pfns or self._page_flags is None:
            return words
        starts = [i for i, pfn in enumerate(pfns) if i == 0 or pfns[i - 1] != pfn - 1]
        runs = list(itertools.pairwise([*starts, len(pfns)]))
        parts = [Part(self._page_flags, (end - first) * 8, pfns[first] * 8) for first, end in runs]
        for (first, end), data in zip(runs, self._source.read(parts), strict=True):
            words.update(zip(pfns[first:end], struct.unpack(f"={end - first}Q", data), strict=True))
        return words


def data_bytes(source: ProcSource, pid: int) -> int:
    """Return end_data - start_data of a process, in bytes. Source: Linux v6.8 fs/proc/array.c:do_task_stat()."""
    fields = read_file(source, f"{pid}/stat").rpartition(b")")[2].split()
    return int(fields[_STAT_END_DATA]) - int(fields[_STAT_END_DATA - 1])


def find_uncounted(before: dict[str, int], after: dict[str, int]) -> frozenset[str]:
    """Return the names of counters that are out of date on this host: they do not show a page that came between.

    Source: Linux v6.8 include/linux/mm.h:get_mm_counter() sums up batches only roughly; it is exact where
    fs/proc/task_mmu.c:task_mem() of newer kernels uses get_mm_counter_sum().
    """
    return frozenset(name for name, shown_by in COUNTERS.items() if after[shown_by] == before[shown_by])
