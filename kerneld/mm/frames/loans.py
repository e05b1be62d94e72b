"""Frames that are lent: a native program may still reach them, though no entry of its page table leads to them.

The agent of a program answers late where processors are scarce (`kerneld.tlb.debts`). Nobody waits for it who has not
asked for what it is to do. But a frame that the program could still write to goes to nobody else: one that is freed
meanwhile is kept here, and given to the buddy allocator when it comes back.

Owns the number of loans of each frame, and the frames that are kept. Knows no address space. Answers to Linux v6.8
mm/mmu_gather.c: there a page that is unmapped keeps a reference until the TLBs have been flushed.

Invariants: a kept frame has one reference, of no entry and no cache, and no flags; it is in no free block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from kerneld.mm.frames.frames import Frames, Pfns


class Loans:
    """The lent frames of one machine. `Frames.loans` is this as long as a frame is lent."""

    def __init__(self, frames: Frames) -> None:
        self._frames = frames
        self._times = np.zeros(len(frames.refcount), dtype=np.uint16)
        """How often each frame is lent."""
        self._kept = np.zeros(len(frames.refcount), dtype=np.bool_)
        self._nr_lent = 0

    def lend(self, pfns: Pfns) -> None:
        """Lend frames, in rising order and each once. Those that are free already are kept from now on."""
        self._times[pfns] += 1
        self._nr_lent += len(pfns)
        free = pfns[self._frames.refcount[pfns] == 0]
        self._frames.buddy.take(free)
        self._keep(free)

    def give_back(self, pfns: Pfns) -> None:
        """End one loan of each frame, which is named once. Those that were freed meanwhile are free now."""
        self._times[pfns] -= 1
        self._nr_lent -= len(pfns)
        back = pfns[self._kept[pfns] & (self._times[pfns] == 0)]
        self._kept[back] = False
        self._frames.refcount[back] = 0
        self._frames.buddy.free_many(back)

    @property
    def is_over(self) -> bool:
        """Whether no frame is lent any more."""
        return not self._nr_lent

    def has(self, pfns: Pfns) -> npt.NDArray[np.bool_]:
        """Return for each of these frames whether it is lent: what it holds may change though no entry leads to it."""
        lent: npt.NDArray[np.bool_] = self._times[pfns] != 0
        return lent

    def keep(self, pfns: Pfns) -> Pfns:
        """Keep the lent ones of frames that have just lost their last reference. Return the others: they are free."""
        lent = self.has(pfns)
        self._keep(pfns[lent])
        return pfns[~lent]

    def _keep(self, pfns: Pfns) -> None:
        self._kept[pfns] = True
        self._frames.refcount[pfns] = 1

    def kept(self) -> Pfns:
        """Return the frames that are free but for their loan."""
        return np.flatnonzero(self._kept)
