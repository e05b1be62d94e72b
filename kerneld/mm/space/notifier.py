"""Who wants to know what changes in an address space.

Answers to Linux v6.8 include/linux/mmu_notifier.h. A notification is a range, never a delta: the listener recomputes
what it shows from VMAs and page table. `MmStruct` and `Pages`, which alone change these, call the listeners.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from shared.uapi.page import Vaddr

if TYPE_CHECKING:
    from kerneld.mm.space.mm import MmStruct


class YoungListener(Protocol):
    """Who is told that entries are old again: a TLB that goes on using them would keep them from being young."""

    def clear_flush_young(self, start: Vaddr, end: Vaddr) -> None:
        """Entries of [start, end), in bytes, have lost their accessed bit. Source: mmu_notifier_clear_flush_young()."""


class MmuNotifier(Protocol):
    """A listener; put it into `MmStruct.notifiers` to be called, take it out to be left alone."""

    def invalidate_range(self, start: Vaddr, end: Vaddr) -> None:
        """VMAs or entries of [start, end), in bytes, have changed; called after the change, possibly more than once."""

    def release(self) -> None:
        """The address space goes: its process exits. Called while everything is still mapped."""

    def exec_mmap(self, new_mm: MmStruct) -> None:
        """The process goes on with another address space, already laid out; the listener moved with it (execve)."""


class Notifiers(list[MmuNotifier]):
    """Who listens to one address space, in the order in which they came."""

    tlb: YoungListener | None = None
    """Of a native program: where the host maps its memory (`kerneld.tlb`)."""

    def invalidate_range(self, start: Vaddr, end: Vaddr) -> None:
        """Tell every listener that [start, end) has changed."""
        for notifier in self:
            notifier.invalidate_range(start, end)
