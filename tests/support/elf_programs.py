"""Programs for the tests of execve, what must hold when one is refused, and the stack as a program reads it."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

from kerneld.mm.calls.access import read_remote_vm
from shared.uapi.auxvec import At
from shared.uapi.page import PAGE_SIZE
from tests.support.elf_files import (
    ET_DYN,
    Elf,
    Phdr,
    R,
    W,
    World,
    X,
    errno_of,
    with_interp,
)

BASE = 0x40_0000
DYN_BASE = 0x5555_5555_4000
MMAP_TOP = 0x7FFF_F7FF_F000
STACK_TOP = 0x7FFF_FFFF_F000
STACK = (STACK_TOP - 33 * PAGE_SIZE, STACK_TOP, "rw-", "")
PROGRAM = "/bin/program"
U64 = (1 << 64) - 1

TEXT = Phdr(flags=R | X, vaddr=0, filesz=PAGE_SIZE, memsz=PAGE_SIZE)
DATA = Phdr(flags=R | W, offset=0x1000, vaddr=0x3000, filesz=0x100, memsz=0x100)
BSS = replace(DATA, memsz=0x2800)


def at(base: int, *phdrs: Phdr) -> tuple[Phdr, ...]:
    return tuple(replace(phdr, vaddr=phdr.vaddr + base) for phdr in phdrs)


STATIC = Elf(at(BASE, TEXT, BSS), entry=BASE + 0x80)
STATIC_PIE = Elf((TEXT, BSS), e_type=ET_DYN, entry=0x80)
_PHDRS, _TEXTS = with_interp((TEXT, BSS))
PIE = replace(STATIC_PIE, phdrs=_PHDRS, texts=_TEXTS)
LD = Elf((TEXT, DATA), e_type=ET_DYN, entry=0x90)


def refused(world: World, content: Any, *arguments: Any) -> int:
    """Execve something that fails, and return the errno: the process must be as it was."""
    mm, maps, free, comm = world.mm, world.maps(), world.frames.free_pages, world.process.comm
    code = errno_of(world.execve, content, *arguments)
    assert code
    world.check()
    assert (world.mm, world.maps(), world.frames.free_pages, world.process.comm) == (mm, maps, free, comm)
    return code


class Stack:
    """What a program's start-up code reads at its stack pointer."""

    def __init__(self, world: World) -> None:
        self.mm = world.mm
        self.pointer = self._next = world.mm.start_stack
        argc = self.word()
        self.argv = [self.string(self.word()) for _ in range(argc)]
        assert self.word() == 0
        self.envp = [self.string(address) for address in iter(self.word, 0)]
        self.auxv: list[tuple[int, int]] = []
        while not self.auxv or self.auxv[-1][0] != At.NULL:
            self.auxv.append((self.word(), self.word()))

    def word(self) -> int:
        (value,) = struct.unpack("<Q", read_remote_vm(self.mm, self._next, 8))
        self._next += 8
        return int(value)

    def string(self, address: int) -> bytes:
        data = bytearray()
        while (byte := read_remote_vm(self.mm, address + len(data), 1)) != b"\0":
            data += byte
        return bytes(data)
