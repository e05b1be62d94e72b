"""The TLBs of the machine's native programs, by address space.

Owns the list of native programs. Linux has nothing like it: there a processor's TLB serves every address space.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from kerneld.errors import KernelBug, SysError
from kerneld.tlb.debts import Debts
from kerneld.tlb.tlb import Tlb
from kerneld.tlb.view import Agent

if TYPE_CHECKING:
    from kerneld.mm.space.mm import MmStruct
    from kerneld.task.task import Process


class Tlbs:
    """All TLBs of a machine."""

    def __init__(self, debts: Debts, *, are_checked: bool = False) -> None:
        """`are_checked`: what the host maps is checked at the beginning of each request of a native thread."""
        self.debts = debts
        self._are_checked = are_checked
        self.by_mm: dict[int, Tlb] = {}
        """By the number of its address space; a fault looks here without a call."""

    def find(self, mm: MmStruct) -> Tlb | None:
        """Return an address space's TLB; None if its program is not native."""
        return self.by_mm.get(mm.number)

    def get(self, mm: MmStruct) -> Tlb:
        """Return an address space's TLB. Raises SysError(EINVAL) if it has none."""
        tlb = self.by_mm.get(mm.number)
        if tlb is None:
            raise SysError(errno.EINVAL)
        return tlb

    def make(self, process: Process, agent: Agent) -> Tlb:
        """Give a process's address space a TLB with this agent, and return it."""
        mm = process.live_mm
        tlb = Tlb(mm, self._forget, agent, self.debts, is_checked=self._are_checked)
        self.by_mm[mm.number] = tlb
        return tlb

    def _forget(self, tlb: Tlb) -> None:
        self.by_mm.pop(tlb.mm.number, None)

    def check(self) -> None:
        """Check that no TLB grants more than the page table. Raises KernelBug."""
        for tlb in self.by_mm.values():
            if not tlb.is_quiet:
                wrong = tlb.check()
                if wrong:
                    raise KernelBug(wrong[0])
