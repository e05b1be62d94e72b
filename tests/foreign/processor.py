"""A foreign processor: Unicorn's x86-64 (QEMU's), in user mode, over the RAM and the CR3 that it is given.

Owns a private copy of the RAM, into which the processor writes accessed and dirty bits and what its programs store. The
upper half of the address space, where Linux has its kernel, holds three instructions that user mode may run and no
more: the process's own half is as kerneld made it.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from contextlib import contextmanager

from unicorn import UC_ARCH_X86, UC_HOOK_INTR, UC_MODE_64, UC_PROT_ALL, UC_PROT_EXEC, UC_PROT_READ, UC_PROT_WRITE, Uc
from unicorn import x86_const as x86
from unicorn.unicorn_py3.unicorn import uclib

from kerneld.hw.paging import PF_INSTR, PF_WRITE, PTE_ACCESSED, PTE_PRESENT, PTE_TABLE, PTE_USER
from shared.uapi.page import PAGE_SIZE

NO_ADDRESS = -1
"""In place of a physical address: the access faults."""

_PROT = {0: UC_PROT_READ, PF_WRITE: UC_PROT_WRITE, PF_INSTR: UC_PROT_EXEC}
_CODE = 0xFFFF_FF80_0000_0000
"""The start of the last entry of a root table."""
_SYSRET, _LOAD, _STORE, _JUMP = _CODE, _CODE + 16, _CODE + 32, _CODE + 48
_INSTRUCTIONS = {_SYSRET: "48 0f 07", _LOAD: "8a 07", _STORE: "88 07", _JUMP: "ff e7"}
"""sysretq; mov al, [rdi]; mov [rdi], al; jmp rdi."""
_MOV_AL_42 = bytes.fromhex("b0 42")
_MSR_EFER, _MSR_STAR = 0xC000_0080, 0xC000_0081
_EFER_SCE, _EFER_LME, _EFER_LMA, _EFER_NXE = 1 << 0, 1 << 8, 1 << 10, 1 << 11
_CR0_PE, _CR0_WP, _CR0_PG, _CR4_PAE = 1 << 0, 1 << 16, 1 << 31, 1 << 5
_SELECTORS = 0x8 << 32 | 0x13 << 48

_vmem_translate = uclib["uc_vmem_translate"]
_vmem_translate.argtypes = (ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_void_p)
_vmem_translate.restype = ctypes.c_int


class Processor:
    """A processor in user mode with a process's page tables."""

    def __init__(self, memory: mmap.mmap, cr3: int) -> None:
        """`memory` is a copy of the RAM that the processor may write to."""
        self.memory = memory
        self.words = memoryview(memory).cast("Q")
        self.root_slot = cr3 // 8 + 511
        """The word of the root table that names the upper half: not the process's."""
        assert self.words[self.root_slot] == 0
        self._uc = Uc(UC_ARCH_X86, UC_MODE_64)
        self._uc.mem_map_ptr(0, len(memory), UC_PROT_ALL, ctypes.addressof(ctypes.c_char.from_buffer(memory)))
        self._uc.hook_add(UC_HOOK_INTR, lambda uc, _number, _data: uc.emu_stop())
        self._paddr = ctypes.c_uint64()
        self._out = ctypes.addressof(self._paddr)
        self._handle = self._uc._uch
        self._map_code(len(memory))
        self._enter_user_mode(cr3)

    def _map_code(self, high: int) -> None:
        """Map the instructions, in memory above the RAM, at _CODE."""
        self._uc.mem_map(high, 4 * PAGE_SIZE, UC_PROT_ALL)
        pud, pmd, pte, page = range(high, high + 4 * PAGE_SIZE, PAGE_SIZE)
        self.words[self.root_slot] = pud | PTE_TABLE
        self._uc.mem_write(pud, (pmd | PTE_TABLE).to_bytes(8, "little"))
        self._uc.mem_write(pmd, (pte | PTE_TABLE).to_bytes(8, "little"))
        self._uc.mem_write(pte, (page | PTE_PRESENT | PTE_USER | PTE_ACCESSED).to_bytes(8, "little"))
        for vaddr, code in _INSTRUCTIONS.items():
            self._uc.mem_write(page + vaddr - _CODE, bytes.fromhex(code))

    def _enter_user_mode(self, cr3: int) -> None:
        """Switch paging on and leave ring 0 as a kernel does, by sysret: the registers alone do not set the ring."""
        uc = self._uc
        uc.reg_write(x86.UC_X86_REG_CR4, _CR4_PAE)
        uc.msr_write(_MSR_EFER, _EFER_SCE | _EFER_LME | _EFER_LMA | _EFER_NXE)
        uc.msr_write(_MSR_STAR, _SELECTORS)
        uc.reg_write(x86.UC_X86_REG_CR3, cr3)
        uc.reg_write(x86.UC_X86_REG_CR0, _CR0_PE | _CR0_WP | _CR0_PG)
        uc.reg_write(x86.UC_X86_REG_RCX, _LOAD)
        uc.reg_write(x86.UC_X86_REG_R11, 2)
        uc.emu_start(_SYSRET, _LOAD, count=1)
        assert uc.reg_read(x86.UC_X86_REG_CS) & 3 == 3

    def translate(self, vaddr: int, access: int) -> int:
        """Return the physical address of an access as the MMU finds it, or NO_ADDRESS where it faults."""
        failed = _vmem_translate(self._handle, vaddr, _PROT[access], self._out)
        return NO_ADDRESS if failed else self._paddr.value

    def load(self, vaddr: int) -> int | None:
        """Let a program load a byte; returns it, or None where that faulted."""
        return self._uc.reg_read(x86.UC_X86_REG_RAX) & 0xFF if self._run(_LOAD, vaddr, 0) else None

    def store(self, vaddr: int, value: int) -> bool:
        """Let a program store a byte; tells whether that succeeded."""
        return self._run(_STORE, vaddr, value)

    def execute(self, vaddr: int, paddr: int | None) -> bool:
        """Let a program jump to an address; tells whether it ran what was put at `paddr`, the frame expected there."""
        if paddr is not None:
            self._uc.mem_write(paddr, _MOV_AL_42)
        return self._run(_JUMP, vaddr, 0, count=2) and self._uc.reg_read(x86.UC_X86_REG_RAX) == 0x42

    def _run(self, instruction: int, vaddr: int, value: int, count: int = 1) -> bool:
        """Run so many instructions; False where a page fault at `vaddr` stopped one before it had done anything."""
        uc = self._uc
        uc.reg_write(x86.UC_X86_REG_RDI, vaddr)
        uc.reg_write(x86.UC_X86_REG_RAX, value)
        uc.reg_write(x86.UC_X86_REG_CR2, _CODE)
        uc.emu_start(instruction, 0, count=count)
        stopped = uc.reg_read(x86.UC_X86_REG_RIP)
        if stopped not in (instruction, vaddr):
            return True
        assert uc.reg_read(x86.UC_X86_REG_CR2) == vaddr
        return False

    def close(self) -> None:
        """Let go of the memory."""
        self.words.release()
        del self._uc  # Its finaliser ends the machine, which uses the memory until then.


@contextmanager
def processor(ram_fd: int, ram_bytes: int, cr3: int) -> Iterator[Processor]:
    """A processor over its own copy of the RAM."""
    made = Processor(private_copy(ram_fd, ram_bytes), cr3)
    try:
        yield made
    finally:
        made.close()


def private_copy(ram_fd: int, ram_bytes: int) -> mmap.mmap:
    """Return the RAM as it is now, for the caller to write to: nobody else sees that."""
    return mmap.mmap(ram_fd, ram_bytes, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
