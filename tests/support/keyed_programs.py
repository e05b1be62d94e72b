"""Programs on a processor with protection keys and on one without, and what they do with keys."""

from __future__ import annotations

from collections.abc import Iterator
from signal import SIGBUS, SIGILL, SIGSEGV

import pytest

from kerneld.hw.processor import INIT_PKRU
from kerneld.syscalls.kernel import KernelConfig
from shared.uapi.mman import Pkey
from shared.uapi.page import PAGE_SIZE
from shared.uapi.signals import Disposition, SegvCode
from shared.uapi.syscalls import Access, Nr
from shared.wire import SigInfo
from tests.support.programs import BASE, ROOT, RW, Program, World

AD, WD = Pkey.DISABLE_ACCESS.value, Pkey.DISABLE_WRITE.value


@pytest.fixture
def without() -> Iterator[Program]:
    """A program on a processor without keys."""
    world = World(KernelConfig(ram_bytes=6 << 20, superuser_uid=ROOT, check_invariants=True, pku=False))
    yield world.attach()
    world.close()


@pytest.fixture(params=[True, False], ids=["pku", "no-pku"])
def either(request: pytest.FixtureRequest) -> Iterator[Program]:
    world = World(KernelConfig(ram_bytes=6 << 20, superuser_uid=ROOT, check_invariants=True, pku=request.param))
    yield world.attach()
    world.close()


def has_keys(program: Program) -> bool:
    return program.kernel.config.pku


def catch(program: Program) -> None:
    for signo in (SIGSEGV, SIGBUS, SIGILL):
        assert program.call(Nr.RT_SIGACTION, signo, Disposition.CAUGHT) == 0


def denied(program: Program, vaddr: int, key: int, nr: int = Nr.LOAD) -> None:
    """One access that a key denies; the program catches signals, and its PKRU is as before, as by sigreturn."""
    before, faults = program.call(Nr.RDPKRU), program.process.min_flt
    answer = program.answer(nr, vaddr, 1, Access.WRITE, data=b"x" if nr == Nr.STORE else b"")
    assert (answer.ret, answer.signo) == (0, SIGSEGV)
    assert answer.siginfo == SigInfo(SegvCode.PKUERR, False, vaddr, key, before)
    assert (program.process.min_flt, program.call(Nr.RDPKRU)) == (faults, INIT_PKRU)
    program.call(Nr.WRPKRU, before)


def with_key(program: Program, rights: int, prot: int = RW, pages: int = 1) -> int:
    """Map pages at BASE with a key of their own, and return that."""
    program.mmap(pages, at=BASE)
    key = program.call(Nr.PKEY_ALLOC, 0, rights)
    assert program.call(Nr.PKEY_MPROTECT, BASE, pages * PAGE_SIZE, prot, key) == 0
    return key
