"""A fork of many page tables where memory is short: it goes on where it was."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from kerneld.errors import SysError
from kerneld.mm.calls import fork
from kerneld.mm.calls.access import read_remote_vm
from kerneld.mm.check.invariants import check_machine
from kerneld.mm.space.mm import MmStruct
from kerneld.syscalls.kernel import KernelConfig
from kerneld.task import table
from shared.uapi.mman import Madv, Map
from shared.uapi.page import PAGE_SIZE, PMD_SIZE
from shared.uapi.syscalls import Nr
from tests.support.pieces import Pieces
from tests.support.programs import ANON, BASE, ROOT, Program, World


@pytest.fixture
def program() -> Iterator[Program]:
    world = World(KernelConfig(ram_bytes=64 << 20, superuser_uid=ROOT))
    world.kernel.vmscan.in_pieces = True
    yield world.attach(ROOT)
    world.close()


@pytest.mark.parametrize("kind", ["written", "huge"])
def test_a_fork_that_stalls_goes_on_where_it_was(program: Program, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To begin again at each of a hundred thousand page tables would take for ever; here each waits for a turn."""
    frames, pieces, asked, tables = program.kernel.frames, Pieces(), 0, 12
    program.mmap(tables * PMD_SIZE // PAGE_SIZE, flags=ANON | Map.NORESERVE, at=BASE)
    if kind == "huge":
        assert not program.call(Nr.MADVISE, BASE, tables * PMD_SIZE, Madv.HUGEPAGE)
    for number in range(tables):
        program.store(BASE + number * PMD_SIZE, b"%d" % number)
    new_copies = []

    def new_copy(old: MmStruct) -> MmStruct:
        new_copies.append(fork.new_copy(old))
        return new_copies[-1]

    def slowpath(_count: int) -> None:
        nonlocal asked
        asked += 1
        if asked % 2:
            frames.has_stalled = frames.has_reclaimed = True
            raise SysError(errno.ENOMEM)

    monkeypatch.setattr(table, "new_copy", new_copy)
    monkeypatch.setattr(frames, "slowpath", slowpath)
    monkeypatch.setattr(frames, "watermark_min", frames.total_pages)
    turns, answer = 0, pieces.begin(program, Nr.CLONE)
    while answer is None and turns < 10 * tables:
        answer = pieces.go_on(program)
        turns += 1
    monkeypatch.undo()
    assert answer is not None
    assert answer.ret > 0
    assert len(new_copies) == 1
    assert 4 <= turns <= 2 * tables + 6
    (copy,) = program.kernel.table.copies_of(program.process)
    assert copy.rss.counts == program.mm.rss.counts
    check_machine(frames, program.kernel.table.address_spaces())
    assert [read_remote_vm(copy, BASE + number * PMD_SIZE, 2) for number in range(tables)] == [
        (b"%d\0" % number)[:2] for number in range(tables)
    ]
