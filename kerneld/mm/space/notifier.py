"""Listeners that are told of changes in an address space.

Answers to Linux v6.8 include/linux/mmu_notifier.h. A notification names a range, never the change itself: the listener
reads the VMAs and the page table again. Only `MmStruct` and `Pages` change these, and so only they call the listeners.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from shared.uapi.page import Vaddr

if TYPE_CHECKING:
    from kerneld.mm.space.mm import MmStruct


class MmuNotifier(Protocol):
    """A listener: it is called as long as it is in `MmStruct.notifiers`."""

    def invalidate_range(self, start: Vaddr, end: Vaddr) -> None:
        """VMAs or entries of [start, end), in bytes, have changed; called after the change, possibly more than once."""

    def release(self) -> None:
        """The address space ends: its process exits. Called while everything is still mapped."""

    def exec_mmap(self, new_mm: MmStruct) -> None:
        """The process continues with another address space, already laid out (execve).

        The listener has moved there too.
        """


class YoungListener(MmuNotifier, Protocol):
    """A listener that is told when entries become old: a TLB must drop them, or they would never become young again."""

    def clear_flush_young(self, start: Vaddr, end: Vaddr) -> None:
        """Entries of [start, end), in bytes, have lost their accessed bit. Source: mmu_notifier_clear_flush_young()."""

    def update_mmu_cache_range(self, vaddr: Vaddr, entry: int, nr_pages: int) -> None:
        """Empty entries from `vaddr` on have been filled with frames in a row; `entry` is the first.

        Source: Linux v6.8 include/linux/pgtable.h:update_mmu_cache_range(), called by set_pte_range().
        """


class Notifiers(list[MmuNotifier]):
    """The listeners of one address space, in the order in which they were added."""

    tlb: YoungListener | None = None
    """The listener of a native program, whose memory the host maps (`kerneld.tlb`); None for other programs."""
    nr_tlbs = 0
    """How many of the listeners need not be told of fills: 1 with `tlb`. Nearly every address space of a native program
    has no other listener, so who fills an entry asks this first."""

    def add_tlb(self, tlb: YoungListener) -> None:
        """Add the listener of a native program."""
        self.append(tlb)
        self.tlb, self.nr_tlbs = tlb, 1

    def forget_tlb(self) -> None:
        """Note that the native program's use of the address space ends; its listener is told until all are removed."""
        self.tlb, self.nr_tlbs = None, 0

    def invalidate_range(self, start: Vaddr, end: Vaddr) -> None:
        """Tell every listener that [start, end) has changed."""
        for notifier in self:
            notifier.invalidate_range(start, end)

    def fill_range(self, start: Vaddr, end: Vaddr) -> None:
        """Tell every listener that empty entries of [start, end) have been filled.

        A TLB need not know: it grants nothing of an empty entry. Linux has no such notification.
        """
        for notifier in self:
            if notifier is not self.tlb:
                notifier.invalidate_range(start, end)
