"""Who looks at the memory of a process while a file that it maps is being cut: only when that is done."""

from __future__ import annotations

import errno
import os

import pytest

from kerneld.errors import SysError
from kerneld.syscalls.answer import Answer, Call, Work
from kerneld.syscalls.machine import procread
from kerneld.syscalls.remote import sys_process_vm_readv
from shared.uapi.page import PAGE_SIZE
from shared.uapi.syscalls import Nr
from tests.support.programs import BASE, RW, SHARED, Program, World, iovecs, page

PAGES = 4


@pytest.fixture
def cut(world: World, root: Program, monkeypatch: pytest.MonkeyPatch) -> Program:
    """A process that has mapped each page of a file by itself; of two of them the file has just been cut off."""
    monkeypatch.setattr("kerneld.mm.space.pace._PIECE_SECONDS", 0.0)
    world.kernel.files.changes.slice_seconds = 0.0
    fd = os.memfd_create("cut")
    os.ftruncate(fd, PAGES * PAGE_SIZE)
    process = world.attach()
    for number in range(PAGES):
        process.mmap(PAGES, RW, SHARED, at=page(2 * PAGES * number), fd=fd)
        process.store(page(2 * PAGES * number + 3), b"x")
    os.ftruncate(fd, 2 * PAGE_SIZE)
    os.close(fd)
    world.kernel.files_changed()
    assert 0 < process.mm.rss.resident_pages < PAGES
    return process


def answer_of(world: World, asked: int | Answer | Work) -> Answer:
    """Return the answer to a request that has begun; there is none before the change of the file is over."""
    try:
        while isinstance(asked, Work):
            world.kernel.files_changed()
            asked = asked.go_on()
    except SysError as error:
        asked = -error.errno
    assert not world.kernel.files.changes.queue
    return asked if isinstance(asked, Answer) else Answer(asked)


def ask(program: Program, *args: int, data: bytes) -> Call:
    a, b, c, d, e, f = (*args, *[0] * (6 - len(args)))
    return Call(program.kernel, program.thread, (a, b, c, d, e, f), data, [])


@pytest.mark.parametrize("view", ["smaps", "smaps_rollup", "statm", "status", "pagemap"])
def test_a_file_under_proc(world: World, root: Program, cut: Program, view: str) -> None:
    offset = page(2 * PAGES * (PAGES - 1)) >> 9 if view == "pagemap" else 0
    asked = procread(ask(root, offset, 32, data=f"{cut.pid}/{view}".encode()))
    seen = answer_of(world, asked).data
    assert cut.mm.rss.resident_pages == 0
    assert seen == root.answer(Nr.PROCREAD, offset, 32, data=f"{cut.pid}/{view}".encode()).data


def test_its_memory(world: World, root: Program, cut: Program) -> None:
    root.mmap(1, at=BASE)
    last = page(2 * PAGES * (PAGES - 1) + 3)
    asked = sys_process_vm_readv(ask(root, cut.pid, 0, 1, 0, 1, data=iovecs((BASE, 1), (last, 1))))
    assert answer_of(world, asked).ret == -errno.EFAULT
