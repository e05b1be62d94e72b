"""The state of one side after an operation: the result, and the memory of each process.

Values only, and the one parser of /proc/PID/maps lines and pagemap words, which both sides write in the same format.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Generic, NamedTuple, TypeAlias, TypeVar

import numpy as np

PM_SOFT_DIRTY, PM_MMAP_EXCLUSIVE, PM_FILE, PM_SWAP, PM_PRESENT = 1 << 55, 1 << 56, 1 << 61, 1 << 62, 1 << 63
"""Bits of a pagemap word: Linux v6.8 fs/proc/task_mmu.c."""
_PFN_MASK = (1 << 55) - 1
_THERE = PM_SWAP | PM_PRESENT
_STATE = PM_SOFT_DIRTY | PM_MMAP_EXCLUSIVE | PM_FILE | _THERE
_LINE = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) (\S{4}) ([0-9a-f]+) \S+ \d+ *(.*)$")
WINDOW_PAGES = 1 << 15
"""The number of pages that are compared at each end of a longer mapping: those of 64 leaf tables."""
_FEW_WORDS = 64
_NEAR_BYTES, _MOST_AT_ONCE = 16 << 12, 8192 << 12
"""What lies between two ranges that are read at once, at most; and the longest range that is."""


class Outcome(NamedTuple):
    """The result of one operation, with unchanged addresses."""

    ret: int
    signo: int = 0
    si_code: int = 0
    si_addr: int = 0
    data: bytes = b""
    min_flt: int | None = None
    """Minor faults of an access; None where Linux defines no number."""
    si_pkey: int = 0
    """The protection key of a SEGV_PKUERR."""
    pkru: int | None = None
    """PKRU after the operation; 0 on a processor without protection keys; None if it was not read."""

    @classmethod
    def of_all(cls, outcomes: Sequence[Outcome]) -> Outcome:
        """Return the outcome of an operation that ran several times.

        It is the first one's value, the first signal, all minor faults, and as data all values.
        """
        faults = [outcome.min_flt for outcome in outcomes]
        first = next((outcome for outcome in outcomes if outcome.signo), outcomes[-1])
        return first._replace(
            ret=outcomes[0].ret,
            pkru=outcomes[-1].pkru,
            data=struct.pack(f"<{len(outcomes)}q", *(outcome.ret for outcome in outcomes)),
            min_flt=None if None in faults else sum(filter(None, faults)),
        )


class Mapping(NamedTuple):
    """One line of maps, with its numbers in smaps."""

    start: int
    end: int
    rights: str
    offset: int
    name: str
    flags: tuple[str, ...]
    """The VmFlags, and the protection key if it is not 0."""
    numbers: bytes = b""
    """The lines of smaps between the first and VmFlags."""


class View(NamedTuple):
    """One process's memory."""

    mappings: tuple[Mapping, ...]
    pages: dict[int, int]
    """By address, the state bits of each page that has any."""
    frames: dict[int, int]
    """The frame of each present page; empty if the host does not show frames."""
    totals: dict[str, int] = {}  # noqa: RUF012  (never changed)
    """The numbers of the whole process: see `kerneld.referee.numbers`."""
    page_flags: dict[int, int] = {}  # noqa: RUF012  (never changed)
    """By address, the word in kpageflags of each page in `frames`: see `kerneld.referee.page_flags`."""


V = TypeVar("V")


class StateOf(NamedTuple, Generic[V]):
    """An outcome, and the memory of every living process after it, in the form in which a side shows it."""

    outcome: Outcome
    views: dict[int, V]
    counters: dict[str, int] = {}  # noqa: RUF012  (never changed)
    """The changes of the whole machine's counters in the operation: see `kerneld.referee.machine`."""


State: TypeAlias = StateOf[View]
"""The form that is compared."""


def parse_maps_line(line: bytes) -> tuple[int, int, str, int, str]:
    """Return start, end, rights, offset and name of a mapping. Raises ValueError for another line."""
    match = _LINE.match(line)
    if match is None:
        raise ValueError(f"no line of maps: {line!r}")
    start, end, rights, offset, name = match.groups()
    return int(start, 16), int(end, 16), rights.decode(), int(offset, 16), _short_name(name.decode())


def key_word(key: int) -> tuple[str, ...]:
    """Return the words for a protection key in a mapping's flags: none for key 0, or without protection keys."""
    return (f"key{key}",) if key else ()


def _short_name(name: str) -> str:
    """Return a name without its folder: the files of the two sides are in different folders."""
    if name.endswith(" (deleted)") and not name.startswith(("/memfd:", "/dev/shm/")):
        return name
    return name.rpartition("/")[2] if name.startswith("/") else name


def windows(start: int, end: int) -> list[tuple[int, int]]:
    """Return the parts of a mapping whose pages are compared: all of it, or both ends of a very long mapping.

    No part is longer than what is read at once.
    """
    span, step = WINDOW_PAGES << 12, _MOST_AT_ONCE
    ends = [(start, end)] if end - start <= 2 * span else [(start, start + span), (end - span, end)]
    return [(at, min(at + step, high)) for low, high in ends for at in range(low, high, step)]


def near_together(places: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return fewer ranges that contain these, which are in order: hundreds of small mappings are read at once."""
    found: list[tuple[int, int]] = []
    for start, end in places:
        if found and start - found[-1][1] <= _NEAR_BYTES and end - found[-1][0] <= _MOST_AT_ONCE:
            found[-1] = found[-1][0], end
        else:
            found.append((start, end))
    return found


def words_of(
    places: Iterable[tuple[int, int]], ranges: Iterable[tuple[int, int]], read: Iterable[bytes]
) -> Iterator[tuple[int, bytes]]:
    """Yield each place's start and its words in pagemap, from those of the ranges that contain them.

    `ranges` are those of `near_together`, `read` their words.
    """
    there = zip(ranges, read, strict=True)
    low, high, words = 0, 0, b""
    for start, end in places:
        while end > high:
            (low, high), words = next(there)
        yield start, words[(start - low) >> 9 : (end - low) >> 9]


def add_pages(words: bytes, start: int, pages: dict[int, int], frames: dict[int, int]) -> None:
    """Add the states and frames of pages from `start` on, from their words in pagemap.

    A page that is not there is soft-dirty exactly if its mapping is, which VmFlags has: it is left out.
    """
    for i, word in _words_with_any(words):
        if word & _THERE:
            vaddr = start + (i << 12)
            pages[vaddr] = word & _STATE
            if word & PM_PRESENT and word & _PFN_MASK:
                frames[vaddr] = word & _PFN_MASK


def _words_with_any(words: bytes) -> Iterator[tuple[int, int]]:
    """Yield the words of pages that are there, each with its number, of few also others. Most of many are not."""
    count = len(words) >> 3
    if count <= _FEW_WORDS:
        yield from enumerate(struct.unpack(f"<{count}Q", words))
        return
    numbers = np.frombuffer(words, dtype="<u8")
    at = np.flatnonzero(numbers & np.uint64(_THERE))
    yield from zip(at.tolist(), numbers[at].tolist(), strict=True)


def find_frames(words: Iterable[tuple[int, bytes]]) -> list[int]:
    """Return the frames in pagemap words, each once, in ascending order."""
    frames: set[int] = set()
    for _, data in words:
        frames.update(word & _PFN_MASK for _, word in _words_with_any(data) if word & PM_PRESENT)
    return sorted(frames - {0})
