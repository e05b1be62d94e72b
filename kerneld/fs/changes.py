"""Handles mapped files that another program has truncated or made longer: piece by piece, between other requests.

On Linux the process that truncates does this work, and waits for it. Here the daemon does it, and the work may be
large: a file may be mapped 60,000 times, or a thousand files may change. Owns the queue of inodes whose size has
changed, the time that they may take in a turn, and the address spaces that have to wait. An address space that maps
such a file is not used until the work on the file is done, neither by its own process nor by another that reads its
memory or its files under /proc. So a process that truncates a file and then makes a request sees the result, and the
mappings do not change meanwhile. A file that changes again goes to the end of the queue.

Without `slice_seconds`, when there is no loop, all work is done at once.

Answers to Linux v6.8 mm/truncate.c:truncate_setsize().
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Generator, Iterator
from time import monotonic
from typing import TYPE_CHECKING

from kerneld.mm.space.mm import MmStruct

if TYPE_CHECKING:
    from kerneld.fs.inode import Inode

Pieces = Generator[None, None, None]


class _Change:
    """The unfinished work on one inode."""

    __slots__ = ("has_changed_again", "mms", "pieces")

    def __init__(self, inode: Inode) -> None:
        self.pieces: Pieces = inode.begin_change()
        self.mms = frozenset(inode.mapping.i_mmap.values())
        self.has_changed_again = False


class Changes:
    """The changed inodes of one machine, in the order of their changes."""

    def __init__(self) -> None:
        self.queue: dict[Inode, _Change | None] = {}
        """By inode, the work on it; None if the work has not begun."""
        self.slice_seconds: float | None = None
        """The time in a turn of the loop for this work; None: until all is done."""
        self._held: Counter[MmStruct] = Counter()

    def note(self, inode: Inode) -> None:
        """Note that the file of an inode was modified."""
        change = self.queue.setdefault(inode, None)
        if change is not None:
            change.has_changed_again = True

    def holds(self, mm: MmStruct | None) -> bool:
        """Return whether an address space has to wait."""
        return mm in self._held

    def wait_for(self, mm: MmStruct) -> Iterator[None]:
        """Yield as long as an address space has to wait: another process wants to look at it."""
        while mm in self._held:
            yield

    def forget(self, inode: Inode) -> None:
        """Drop an inode that no mapping and no call uses any more."""
        self._release(self.queue.pop(inode, None))

    def finish(self, inode: Inode) -> Pieces:
        """Handle an inode's changes completely: the call that has changed the inode does this, as on Linux.

        Yields when other clients may be served. The loop goes on with the work meanwhile.
        """
        while inode in self.queue:
            if self.queue[inode] is None:
                self._begin(inode)
            elif self._step(inode):
                yield

    def go_on(self) -> None:
        """Work on the noted inodes for a slice of time, at least one piece."""
        until = None if self.slice_seconds is None else monotonic() + self.slice_seconds
        for inode in [inode for inode, change in self.queue.items() if change is None]:
            self._begin(inode)
        waiting = deque(self.queue)
        while waiting:
            inode = waiting.popleft()
            if self._step(inode):
                waiting.append(inode)
            if until is not None and monotonic() >= until:
                return

    def _step(self, inode: Inode) -> bool:
        """Do one piece of the work on an inode, and return whether more of it is left.

        Round robin, also from turn to turn: an inode with much work does not delay the others.
        """
        change = self.queue.pop(inode)
        assert change is not None
        if next(change.pieces, change) is not change:
            self.queue[inode] = change
            return True
        self._release(change)
        if change.has_changed_again:
            self.queue[inode] = None
        return False

    def _begin(self, inode: Inode) -> None:
        if not inode.has_other_size():
            del self.queue[inode]
            return
        change = self.queue[inode] = _Change(inode)
        self._held.update(change.mms)

    def _release(self, change: _Change | None) -> None:
        if change is None:
            return
        change.pieces.close()
        self._held.subtract(change.mms)
        for mm in change.mms:
            if not self._held[mm]:
                del self._held[mm]
