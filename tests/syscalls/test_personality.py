"""personality as a request, and what its flags do to memory. tests/native compares that with the host."""

from __future__ import annotations

import os

import pytest

from kerneld.mm.vm_flags import VM_EXEC
from shared.uapi.page import PAGE_SIZE
from shared.uapi.personality import ADDR_COMPAT_LAYOUT, ASKS, READ_IMPLIES_EXEC
from shared.uapi.syscalls import Nr
from tests.support.programs import BASE, NONE, READ, RW, USER, WRITE, Program, World, page

UNAME26 = 0x2_0000


def is_executable(program: Program, vaddr: int) -> bool:
    vma = program.mm.vmas.find(vaddr)
    assert vma is not None
    return vma.vm_flags & VM_EXEC != 0


def test_it_returns_the_one_before(program: Program) -> None:
    """All 32 bits are kept; the argument is an unsigned int."""
    assert program.call(Nr.PERSONALITY, ASKS) == 0
    assert program.call(Nr.PERSONALITY, 1 << 32 | 0xFFFF_FFFE) == 0
    assert program.call(Nr.PERSONALITY, -1) == 0xFFFF_FFFE
    assert program.call(Nr.PERSONALITY, UNAME26) == 0xFFFF_FFFE


def test_a_child_has_it(world: World, real_child: int) -> None:
    parent = world.attach(USER, pid=os.getpid())
    parent.call(Nr.PERSONALITY, READ_IMPLIES_EXEC)
    token = parent.call(Nr.CLONE)
    parent.call(Nr.PERSONALITY, 0)
    assert world.attach(USER, pid=real_child, token=token).call(Nr.PERSONALITY, ASKS) == READ_IMPLIES_EXEC


@pytest.mark.parametrize(("prot", "executable"), [(READ, True), (RW, True), (WRITE, False), (NONE, False)])
def test_what_can_be_read_can_be_executed(program: Program, prot: int, executable: bool) -> None:
    program.call(Nr.PERSONALITY, READ_IMPLIES_EXEC)
    program.mmap(1, prot, at=BASE)
    assert is_executable(program, BASE) == executable
    program.mmap(2, NONE, at=page(1))
    assert program.call(Nr.MPROTECT, page(1), 2 * PAGE_SIZE, prot) == 0
    assert is_executable(program, page(1)) == executable


def test_the_heap_is_executable_whatever_it_is_for(program: Program) -> None:
    end = program.call(Nr.BRK)
    program.call(Nr.BRK, end + PAGE_SIZE)
    program.call(Nr.PERSONALITY, READ_IMPLIES_EXEC)
    program.call(Nr.BRK, end + 2 * PAGE_SIZE)
    assert [is_executable(program, end + offset) for offset in (0, PAGE_SIZE)] == [False, True]


def test_the_layout_is_that_of_the_last_execve(program: Program) -> None:
    before = program.mmap(1)
    program.call(Nr.PERSONALITY, ADDR_COMPAT_LAYOUT)
    assert program.mmap(1) == before - PAGE_SIZE
