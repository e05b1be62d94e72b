"""Files that others have cut or made longer while they are mapped: acted upon piece by piece, while others are served.

On Linux who truncates does this work, and waits for it. Here it is the daemon's: somebody else's file may be mapped
60,000 times, or be a thousand files. Owns the queue of inodes that have another size than was acted upon, how much of
a turn they may take, and whom they hold: an address space that maps such a file is not worked with until it is done,
so that who truncates and then asks is told the truth, and nothing of the mappings changes meanwhile. A file that
changes again meanwhile has its turn again, when those who wait have had theirs.

Without `slice_seconds`, as where there is no loop to go on with it, all is done at once.

Answers to Linux v6.8 mm/truncate.c:truncate_setsize().
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Generator
from time import monotonic
from typing import TYPE_CHECKING

from kerneld.mm.space.mm import MmStruct

if TYPE_CHECKING:
    from kerneld.fs.inode import Inode

Pieces = Generator[None, None, None]


class _Change:
    """One inode's change under way."""

    __slots__ = ("has_changed_again", "mms", "pieces")

    def __init__(self, inode: Inode) -> None:
        self.pieces: Pieces = inode.begin_change()
        self.mms = frozenset(inode.mapping.i_mmap.values())
        self.has_changed_again = False


class Changes:
    """The inodes of one machine that have changed, the first first."""

    def __init__(self) -> None:
        self.queue: dict[Inode, _Change | None] = {}
        """None: not looked at yet."""
        self.slice_seconds: float | None = None
        """How long a turn of the loop may act upon changes; None: until all is done."""
        self._held: Counter[MmStruct] = Counter()

    def note(self, inode: Inode) -> None:
        """An inode's file has been modified."""
        change = self.queue.setdefault(inode, None)
        if change is not None:
            change.has_changed_again = True

    def holds(self, mm: MmStruct | None) -> bool:
        """Tell whether an address space has to wait."""
        return mm in self._held

    def forget(self, inode: Inode) -> None:
        """Nothing maps an inode any more, and nobody holds it."""
        self._release(self.queue.pop(inode, None))

    def finish(self, inode: Inode) -> None:
        """Act upon an inode's change to its end: who has made it waits for that."""
        if self.queue.get(inode) is None:
            self._begin(inode)
        change = self.queue.pop(inode, None)
        if change is not None:
            for _ in change.pieces:
                pass
            self._release(change)

    def go_on(self) -> None:
        """Look at those that have been noted, and act upon them for a slice of time: one piece at least."""
        until = None if self.slice_seconds is None else monotonic() + self.slice_seconds
        for inode in [inode for inode, change in self.queue.items() if change is None]:
            self._begin(inode)
        waiting = deque(self.queue)
        while waiting:
            inode = waiting.popleft()
            # Round robin, from turn to turn too: one that takes long does not keep others from their end.
            change = self.queue.pop(inode)
            assert change is not None
            if next(change.pieces, change) is not change:
                self.queue[inode] = change
                waiting.append(inode)
            else:
                self._release(change)
                if change.has_changed_again:
                    self.queue[inode] = None
            if until is not None and monotonic() >= until:
                return

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
