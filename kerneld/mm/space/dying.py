"""Address spaces that nobody works with any more: they are taken down piece by piece, while others are served.

On Linux every process does that for itself, on whatever processor is free, with the rest of the machine going on; here
it would stand still. So an address space that dies is let go of by its process at once and comes here. Owns the queue
of these, and how much of a turn they may take. Between two pieces one is whole: it has fewer VMAs than before, and
fewer entries, and reverse maps may lead to what is left; only its upper page tables may cover nothing any more. Who
needs its memory, its files or its share of a limit at once has it taken down (`finish`).

Without `slice_seconds`, as where there is no loop to go on with it, an address space is gone at once.

Answers to Linux v6.8 mm/mmap.c:exit_mmap() and, for who is too late to wait for that, mm/oom_kill.c:oom_reaper().
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from time import monotonic
from typing import TYPE_CHECKING

from kerneld.mm.files.filemap import AddressSpace
from kerneld.mm.frames.frames import Frames
from kerneld.mm.space.locked_pages import zap_vma_range
from kerneld.mm.space.pace import Pace
from kerneld.mm.space.writeback import writeback_in_pieces
from kerneld.mm.vm_flags import VM_SHARED

if TYPE_CHECKING:
    from kerneld.mm.space.mm import MmStruct
    from kerneld.mm.space.vma import Vma

SLICE_SECONDS = 0.002
_LONG_AGO = 4
"""After so many slices in which none was run another turn has begun."""
Pieces = Generator[None, None, None]


class Dying:
    """The address spaces of one machine that are being taken down, the oldest first, and files that go with them."""

    def __init__(self) -> None:
        self.queue: deque[MmStruct | AddressSpace] = deque()
        self.slice_seconds: float | None = None
        """How long a turn of the loop may take them down; None: until they have gone."""
        self._pieces: dict[MmStruct | AddressSpace, Pieces] = {}
        self._is_running = False
        self._spent = 0.0
        self._last = 0.0

    def begin(self, mm: MmStruct) -> None:
        """Take an address space down, as far as this turn may: nobody works with it any more."""
        self._pieces[mm] = take_down(mm)
        self.queue.append(mm)
        if self.slice_seconds is None:
            self._go_on(lambda: False)
        else:
            self._run_slice(self.slice_seconds)

    def begin_eviction(self, mapping: AddressSpace) -> None:
        """Drop what is cached of a file that nobody finds any more: next, as what is under way has let go of it."""
        self._pieces[mapping] = _evict(mapping)
        self.queue.insert(int(self._is_running), mapping)
        if self.slice_seconds is None and not self._is_running:
            self._go_on(lambda: False)

    @property
    def mms(self) -> list[MmStruct]:
        """The address spaces."""
        return [one for one in self.queue if not isinstance(one, AddressSpace)]

    @property
    def mappings(self) -> list[AddressSpace]:
        """The files that are being evicted."""
        return [one for one in self.queue if isinstance(one, AddressSpace)]

    def turn(self) -> None:
        """A turn of the loop: go on for a slice of time."""
        self._spent = 0.0
        self._run_slice(self.slice_seconds or 0.0)

    def _run_slice(self, slice_seconds: float) -> None:
        """Run pieces, one at least unless this turn has had its slice: many may end in one."""
        begun = monotonic()
        if begun - self._last > _LONG_AGO * slice_seconds:
            self._spent = 0.0
        if self._spent <= slice_seconds:
            until = begun + slice_seconds - self._spent
            self._go_on(lambda: monotonic() >= until)
            self._last = monotonic()
            self._spent += self._last - begun

    def finish(self, is_enough: Callable[[], bool] = lambda: False) -> None:
        """Go on until somebody has what is needed, or all have gone."""
        self._go_on(is_enough)

    def finish_in_pieces(self) -> Pieces:
        """Take down those that are dying now; yield between two pieces, where others may be served."""
        last = self.queue[-1] if self.queue else None
        while last in self._pieces or (self.queue and isinstance(self.queue[0], AddressSpace)):
            self._go_on(lambda: True)
            yield

    def _go_on(self, is_enough: Callable[[], bool]) -> None:
        """Run pieces, one at least."""
        while self.queue:
            first = self.queue[0]
            pieces = self._pieces[first]
            self._is_running = True
            try:
                is_last = _is_over(pieces) if isinstance(first, AddressSpace) else run_piece(first, pieces)
            finally:
                self._is_running = False
            if is_last:
                self.queue.popleft()
                del self._pieces[first]
            if is_enough():
                return


def _is_over(pieces: Pieces) -> bool:
    """Run one piece, and return whether it was the last."""
    return next(pieces, pieces) is pieces


def run_piece(_mm: MmStruct, pieces: Pieces) -> bool:
    """Run one piece of an address space's end, and return whether it was the last."""
    return _is_over(pieces)


def _evict(mapping: AddressSpace) -> Pieces:
    """Drop what is cached of a file; yield where the rest is whole: pages that nothing but reclaim comes to."""
    pace = Pace()
    while mapping.evict_some():
        if pace.is_over():
            yield
            pace.begin()


def take_down(mm: MmStruct) -> Pieces:
    """Clear the entries, remove the VMAs, and free the tables; yield where the rest is whole."""
    mm.is_dying = True
    pace = Pace()
    while (vma := mm.vmas.find(0)) is not None:
        yield from _zap(mm, vma, pace)
        yield from write_back(vma)
        mm.remove_vma(vma)
        if pace.is_over():
            yield
            pace.begin()
    yield from mm.page_table.destroy_in_pieces(pace)


def write_back(vma: Vma) -> Iterator[None]:
    """Write what a VMA has written to a shared file to it, as `kerneld.mm.space.munmap.unmap_vma` does."""
    if vma.vm_flags & VM_SHARED and vma.file is not None:
        yield from writeback_in_pieces(vma.file.mapping, vma.pgoff, vma.pgoff + vma.nr_pages)


def _zap(mm: MmStruct, vma: Vma, pace: Pace) -> Pieces:
    start = vma.start
    while start < vma.end:
        stop = pace.far_stop(mm.page_table.walk, start, vma.end)
        zap_vma_range(mm, vma, start, stop)
        start = stop
        if start < vma.end and pace.is_over():
            yield
            pace.begin()


def room_after(frames: Frames, is_enough: Callable[[], bool]) -> bool:
    """Tell whether there is enough of what somebody wants, once those that are dying have gone, where that helps."""
    if is_enough():
        return True
    if frames.dying is not None and frames.dying.queue:
        frames.dying.finish(is_enough)
    return is_enough()
