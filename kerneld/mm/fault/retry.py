"""A fault that has to wait for a userfaultfd (VM_FAULT_RETRY): how those go on who took it.

A call in pieces waits in its place. What is not in pieces raises `AwaitsPage`, and is made again.
"""

from __future__ import annotations

from kerneld.mm.fault.vm_fault import VM_FAULT_RETRY
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.userfaultfd import AwaitsPage, Userfault
from shared.uapi.page import Vaddr


def take_userfault(mm: MmStruct) -> Userfault:
    """Return what the fault that has just returned VM_FAULT_RETRY waits for. Nobody else gets it."""
    fault, mm.userfault = mm.userfault, None
    assert fault is not None
    return fault


def raise_userfault(mm: MmStruct, result: int, address: Vaddr, *, by_kernel: bool = False) -> None:
    """Raise AwaitsPage if the fault that an address has just taken has returned VM_FAULT_RETRY."""
    if result & VM_FAULT_RETRY:
        fault = take_userfault(mm)
        fault.is_major |= by_kernel
        fault.vaddr = address
        raise AwaitsPage(fault)
