"""Address spaces that no process uses any more: they are taken down piece by piece, while other clients are served.

On Linux every process takes its own address space down, on any free processor, while the rest of the machine goes on.
Here one thread does everything, so the rest would wait. Therefore the process gives its address space up at once, and
the address space is queued here. Owns the queue, and how much of a turn the queue may take. Between two pieces an
address space is consistent: it has fewer VMAs and fewer entries than before, and reverse maps may lead to the rest;
only its upper page tables may cover nothing any more. A caller that needs its memory, its files or its share of a limit
at once calls `finish`.

Without `slice_seconds` (no event loop runs the queue) an address space is taken down at once.
Answers to Linux v6.8 mm/mmap.c:exit_mmap() and, for an allocation that cannot wait for that,
mm/oom_kill.c:oom_reaper().
"""

from __future__ import annotations

import errno
import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterator
from time import monotonic, thread_time
from typing import TYPE_CHECKING

from kerneld.errors import SysError
from kerneld.mm.files.filemap import AddressSpace
from kerneld.mm.frames.frames import Frames
from kerneld.mm.space.locked_pages import zap_vma_range
from kerneld.mm.space.pace import Pace
from kerneld.mm.space.vma import vma_has_recency
from kerneld.mm.space.writeback import write_range_in_pieces
from kerneld.mm.vm_flags import VM_LOCKED, VM_SHARED
from shared.uapi.page import PMD_SIZE, TASK_SIZE, Vaddr

if TYPE_CHECKING:
    from kerneld.mm.space.mm import MmStruct
    from kerneld.mm.space.vma import Vma

SLICE_SECONDS = 0.002
_AWAITED_SECONDS = 0.005
"""How long a call that needs what dying address spaces have waits for them in one turn."""
_WRITING_SECONDS, _WRITING_CLOCK_SECONDS = 0.01, 0.1
"""How long the ends of one turn may hold up their answers for what they write to files: of the processor's time, and by
the clock. On a busy machine others have the processor meanwhile, and a file may be on a slow disk."""
_MOST_ALIKE = 64
"""VMAs whose entries one piece clears together."""
_MANY_VMAS = 1024
"""Of an address space with more the wide VMAs are cleared first."""
_LOOKED_THROUGH = 512
"""VMAs that are looked at between two looks at the clock."""
Pieces = Generator[None, None, None]


class Dying:
    """The address spaces of one machine that are being taken down, the oldest first, and files that go with them."""

    def __init__(self) -> None:
        self.queue: deque[MmStruct | AddressSpace] = deque()
        self.slice_seconds: float | None = None
        """How long the queue may work in one turn of the event loop, in seconds; None: until the queue is empty."""
        self.is_answer_first = False
        """Whether `begin` leaves the first slice to `begin_fresh`: the event loop first answers the process, which ends
        meanwhile on another processor, and serves nobody else before. Not if the end may write to a file, which others
        may read as soon as the process has ended: that comes before all older ends, and has a longer slice."""
        self.is_fresh = False
        """Whether an address space waits for its first slice."""
        self._pieces: dict[MmStruct | AddressSpace, Pieces] = {}
        self._is_running = False
        self._spent = 0.0
        """The time that the slices have taken since `turn`: hundreds of processes may end between two of its calls."""
        self._spent_writing = 0.0

    def begin(self, mm: MmStruct) -> None:
        """Take down an address space that no process uses any more, as far as this turn's slice allows."""
        mm.is_dying = True
        self._pieces[mm] = take_down(mm)
        if self.is_answer_first and _may_write(mm):
            self.queue.appendleft(mm)
            self._write_files(mm)
            return
        self.queue.append(mm)
        if self.slice_seconds is None:
            self._go_on(lambda: False)
        elif self.is_answer_first:
            self.is_fresh = True
        else:
            self._run_slice(self.slice_seconds)

    def begin_fresh(self) -> None:
        """Take down address spaces that have waited for an answer, as far as this turn's slice allows."""
        self.is_fresh = False
        self._run_slice(self.slice_seconds or 0.0)

    def begin_eviction(self, mapping: AddressSpace) -> None:
        """Drop the cached pages of a file that no process can reach any more: right after the piece under way."""
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
        """Work on the queue for one slice of time: one turn of the event loop."""
        self._spent = self._spent_writing = 0.0
        self._run_slice(self.slice_seconds or 0.0)
        self._spent = 0.0

    def _write_files(self, mm: MmStruct) -> None:
        """Run pieces of an end until its files are written, or this turn has had its time for that."""
        begun, begun_clock, spent = thread_time(), monotonic(), self._spent_writing
        if spent >= _WRITING_SECONDS:
            return
        self._go_on(
            lambda: (
                not mm.shared_vm
                or thread_time() - begun + spent >= _WRITING_SECONDS
                or monotonic() - begun_clock >= _WRITING_CLOCK_SECONDS
            )
        )
        self._spent_writing += thread_time() - begun
        self._spent += monotonic() - begun_clock

    def _run_slice(self, slice_seconds: float, is_enough: Callable[[], bool] = lambda: False) -> None:
        """Run pieces, at least one, unless this turn has had its slice: many processes may end in one turn."""
        if self._spent <= slice_seconds:
            begun = monotonic()
            until = begun + slice_seconds - self._spent
            self._go_on(lambda: is_enough() or monotonic() >= until)
            self._spent += monotonic() - begun

    def finish(self, is_enough: Callable[[], bool] = lambda: False) -> None:
        """Work on the queue until `is_enough` returns True, or until the queue is empty."""
        self._go_on(is_enough)

    def finish_in_pieces(self) -> Pieces:
        """Take down the address spaces that are dying now.

        Yield between two pieces, when other clients may be served.
        """
        last = self.queue[-1] if self.queue else None
        while last in self._pieces or (self.queue and isinstance(self.queue[0], AddressSpace)):
            self._go_on(lambda: True)
            yield

    def _go_on(self, is_enough: Callable[[], bool]) -> None:
        """Run pieces, at least one."""
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
    """Drop the cached pages of a file; yield when the rest is consistent.

    Only reclaim can reach these pages meanwhile.
    """
    pace = Pace()
    while mapping.evict_some():
        if pace.is_over():
            yield
            pace.begin()


def take_down(mm: MmStruct) -> Pieces:
    """Clear the entries, remove the VMAs, and free the tables; yield when the rest is consistent.

    Those of shared files go first: the answer to the end waits for what is written. Of many VMAs the wide ones are
    cleared first: who needs memory then has it soon (mm/oom_kill.c:oom_reaper()).
    """
    mm.is_dying = True
    pace = Pace()
    cleared: Vaddr = 0
    if mm.shared_vm:
        for each in (yield from _find(mm, lambda vma: vma.vm_flags & VM_SHARED != 0, pace)):
            yield from _zap(mm, each, each.end, pace)
            yield from write_back(each)
            mm.remove_vma(each)
            if pace.is_over():
                yield
                pace.begin()
    wide: list[Vma] = []
    if mm.map_count > _MANY_VMAS:
        wide = yield from _find(mm, lambda vma: vma.end - vma.start >= PMD_SIZE, pace)
    for each in wide:
        yield from _zap(mm, each, each.end, pace)
    empty = set(wide)
    while (vma := mm.vmas.find(0)) is not None:
        if vma.end > cleared and vma not in empty:
            cleared = _end_of_alike(mm, vma)
            yield from _zap(mm, vma, cleared, pace)
        yield from write_back(vma)
        mm.remove_vma(vma)
        if pace.is_over():
            yield
            pace.begin()
    yield from mm.page_table.destroy_in_pieces(pace)


def _find(mm: MmStruct, is_wanted: Callable[[Vma], bool], pace: Pace) -> Generator[None, None, list[Vma]]:
    """Return the VMAs that are wanted; nobody else changes them."""
    found: list[Vma] = []
    vmas = iter(mm.vmas)
    while some := list(itertools.islice(vmas, _LOOKED_THROUGH)):
        found += filter(is_wanted, some)
        if pace.is_over():
            yield
            pace.begin()
    return found


def _may_write(mm: MmStruct) -> bool:
    """Return whether the end of an address space may write to files. Of many VMAs those of files are not looked for."""
    if not mm.shared_vm:
        return False
    return mm.map_count > _MANY_VMAS or any(_is_of_real_file(vma) for vma in mm.vmas)


def _is_of_real_file(vma: Vma) -> bool:
    return vma.vm_flags & VM_SHARED != 0 and vma.file is not None and vma.file.mapping.backing is not None


def write_back(vma: Vma) -> Iterator[None]:
    """Write the dirty pages of a VMA's shared file to the file, as `kerneld.mm.space.munmap.do_munmap` does."""
    if vma.vm_flags & VM_SHARED and vma.file is not None:
        yield from write_range_in_pieces(vma.file.mapping, vma.pgoff, vma.pgoff + vma.nr_pages)


def _end_of_alike(mm: MmStruct, vma: Vma) -> Vaddr:
    """Return the end of the VMAs whose entries are cleared together with this one's.

    No frame is mapped twice in them: the VMAs of one file have different pages of it. None is locked. Each begins in
    the leaf table in which the last one ends. Small VMAs are many, and a walk for each would cost most of an exit.
    """
    end = vma.end
    if not _is_plain(vma):
        return end
    used = {_mapping(vma): vma.pgoff + vma.nr_pages}
    for other in itertools.islice(mm.vmas.overlapping(end, TASK_SIZE), _MOST_ALIKE):
        mapping = _mapping(other)
        if not _is_plain(other) or other.start & -PMD_SIZE != (end - 1) & -PMD_SIZE:
            break
        if mapping is not None and other.pgoff < used.get(mapping, 0):
            break
        used[mapping] = other.pgoff + other.nr_pages
        end = other.end
    return end


def _is_plain(vma: Vma) -> bool:
    """Return whether the entries of a VMA may be cleared with those of others: see `zap_vma_range`."""
    if vma.vm_flags & VM_LOCKED:
        return False
    return vma.file is None or (not vma.vm_flags & VM_SHARED and vma_has_recency(vma))


def _mapping(vma: Vma) -> AddressSpace | None:
    return vma.file.mapping if vma.file is not None else None


def _zap(mm: MmStruct, vma: Vma, end: Vaddr, pace: Pace) -> Pieces:
    """Clear the entries from the start of a VMA to `end`, the end of those that are like it."""
    start = vma.start
    while start < end:
        stop = pace.far_stop(mm.page_table.walk, start, end)
        zap_vma_range(mm, vma, start, stop)
        start = stop
        if start < end and pace.is_over():
            yield
            pace.begin()


def room_after(frames: Frames, is_enough: Callable[[], bool]) -> bool:
    """Return whether there is enough of a resource (`is_enough`).

    First take dying address spaces down if it is short. For a call that can begin again not for longer than a part of a
    turn: then SysError(ENOMEM) is raised, see `Frames.take_stall`.
    """
    if is_enough():
        return True
    dying = frames.dying
    if dying is None or not dying.queue:
        return False
    if not frames.may_stall or dying.slice_seconds is None:
        dying.finish(is_enough)
        return is_enough()
    until = monotonic() + _AWAITED_SECONDS
    dying.finish(lambda: is_enough() or monotonic() >= until)
    if not is_enough() and dying.queue:
        frames.has_stalled = True
        raise SysError(errno.ENOMEM)
    return is_enough()
