"""A machine with files: what the tests of kerneld.fs share."""

from __future__ import annotations

import gc
import os

from kerneld.fs.file_table import FileTable
from kerneld.mm.calls.mmap import do_mmap, wants_populate
from kerneld.mm.fault.fault import handle_mm_fault
from kerneld.mm.fault.populate import mm_populate
from kerneld.mm.fault.vm_fault import VM_FAULT_MAJOR
from kerneld.mm.files.file import File
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.munmap import do_munmap
from kerneld.task.task import Cred
from shared.uapi.mman import Map, Prot
from shared.uapi.page import PAGE_SIZE, page_align
from tests.support.machine import Machine

RW = Prot.READ | Prot.WRITE
ROOT = Cred(0, 0, superuser=True)
USER = Cred(1000, 1000, superuser=False)
TEXT = bytes(range(256)) * 40
"""The contents of a file of two and a half pages."""


class FileMachine(Machine):
    """A machine with a table of files; neither a frame nor a file may be left when it ends."""

    def __init__(self) -> None:
        super().__init__()
        self.files = FileTable(self.frames)

    def close(self) -> None:
        while self.mms:
            self.exit(self.mms[-1])
        assert len(self.files) == 0
        assert len(self.files.accounts) == 0
        self.files.close()
        gc.collect()  # The traceback of an error that a test has caught may still hold an address space.
        super().close()

    def map_fd(self, mm: MmStruct, fd: int, length: int = PAGE_SIZE, **how: int) -> int:
        """Do as the mmap call does with a descriptor of its own: a copy of `fd`."""
        file = self.files.open_fd(os.dup(fd))
        try:
            return map_file(mm, file, length, **how)
        finally:
            self.files.put_unused(file)

    def load(self, mm: MmStruct, vaddr: int, length: int) -> bytes:
        """Read bytes of one page as the processor does."""
        return bytes(self.ram.read(self._paddr(mm, vaddr, write=False), length))

    def store(self, mm: MmStruct, vaddr: int, data: bytes) -> None:
        """Write bytes of one page as the processor does."""
        self.ram.write(self._paddr(mm, vaddr, write=True), data)

    def _paddr(self, mm: MmStruct, vaddr: int, *, write: bool) -> int:
        vma = mm.vmas.lookup(vaddr)
        assert vma is not None
        assert handle_mm_fault(mm, vma, vaddr, write) in (0, VM_FAULT_MAJOR)
        pte = mm.page_table.find_pte(vaddr)
        assert pte is not None
        return (self.ram.words[pte] & 0x000F_FFFF_FFFF_F000) | (vaddr & PAGE_SIZE - 1)


def map_file(
    mm: MmStruct,
    file: File | None,
    length: int = PAGE_SIZE,
    *,
    addr: int = 0,
    prot: int = Prot.READ,
    flags: int = Map.PRIVATE,
    pgoff: int = 0,
) -> int:
    addr = do_mmap(mm, addr, length, int(prot), int(flags), file, pgoff, privileged=False)
    if wants_populate(mm, flags):
        mm_populate(mm, addr, addr + page_align(length))
    return addr


def unmap(mm: MmStruct, addr: int, length: int = PAGE_SIZE) -> None:
    do_munmap(mm, addr, length)


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))
