"""Arguments that are 32 bits wide in C: what stands in the upper half of the word is ignored, as on Linux."""

from __future__ import annotations

import errno
from signal import SIGSEGV

import pytest

from kerneld.mm.vm_flags import VM_LOCKED
from shared.uapi.mman import Madv, Mcl, Ms
from shared.uapi.page import PAGE_SIZE
from shared.uapi.syscalls import Nr
from tests.support.programs import BASE, USER, Program, World, iovecs

HIGH = 0xDEAD_BEEF << 32


@pytest.mark.parametrize(
    ("nr", "args"),
    [
        (Nr.MADVISE, (BASE, PAGE_SIZE, HIGH | Madv.DONTNEED)),
        (Nr.MSYNC, (BASE, PAGE_SIZE, HIGH | Ms.SYNC)),
        (Nr.MLOCK2, (BASE, PAGE_SIZE, HIGH)),
        (Nr.MLOCKALL, (HIGH | Mcl.CURRENT,)),
        (Nr.RT_SIGACTION, (HIGH | SIGSEGV, 2)),
        (Nr.PRLIMIT64, (HIGH, HIGH | 9, 0, 0)),
        (Nr.SETUID, (HIGH | USER,)),
    ],
)
def test_the_upper_half_is_ignored(program: Program, nr: Nr, args: tuple[int, ...]) -> None:
    program.mmap(1, at=BASE)
    assert program.call(nr, *args) == 0


def test_what_the_lower_half_says_is_done(program: Program) -> None:
    program.mmap(1, at=BASE)
    program.store(BASE, b"x")
    assert program.call(Nr.MADVISE, BASE, PAGE_SIZE, HIGH | Madv.DONTNEED) == 0
    assert program.load(BASE) == b"\0"
    assert program.call(Nr.MLOCKALL, HIGH | Mcl.CURRENT) == 0
    assert all(vma.vm_flags & VM_LOCKED for vma in program.mm.vmas)


def test_a_pid_in_anothers_memory(program: Program, world: World) -> None:
    other = world.attach(USER)
    for each in (program, other):
        each.mmap(1, at=BASE)
    other.store(BASE, b"theirs")
    there = iovecs((BASE, 6))
    assert program.call(Nr.PROCESS_VM_READV, HIGH | other.pid, BASE, 1, BASE, 1, 0, data=there * 2) == 6
    assert program.load(BASE, 6) == b"theirs"
    # Flags are a whole word there.
    assert program.call(Nr.PROCESS_VM_READV, other.pid, BASE, 1, BASE, 1, HIGH, data=there * 2) == -errno.EINVAL
