"""Traced entries that move by the GiB, and records of many entries that hide their frames."""

from __future__ import annotations

import numpy as np
import pytest

from kerneld.mm.space import pace
from kerneld.trace import tracepoint
from shared.trace.event import Event, without_pfn
from shared.trace.events import PTE_CLEAR, PTE_SET
from shared.trace.record import Record
from shared.uapi.mman import Map, Mremap
from shared.uapi.page import PAGE_SIZE, PMD_SIZE
from shared.uapi.syscalls import Nr
from tests.support.pieces import Pieces
from tests.support.programs import ANON, FIXED, RW, Program
from tests.support.traced import TracedWorld

GIB = 1 << 30
START = 1 << 40
TABLES = (0, 17, 40, 511, 512 + 300)
"""The leaf tables of the mapping that have pages: one GiB as a whole, and a part of the next."""
TO = Mremap.MAYMOVE.value | Mremap.FIXED.value


def sparse(program: Program) -> None:
    program.call(Nr.MMAP, START, 2 * GIB, RW, ANON | FIXED | Map.NORESERVE.value)
    for table in TABLES:
        program.store(START + table * PMD_SIZE, b"%03d" % table)


def move(program: Program, to: int, flags: int) -> int:
    """Move it in pieces, and return how many these are."""
    pieces, count = Pieces(), 1
    answer = pieces.begin(program, Nr.MREMAP, START, 2 * GIB, 2 * GIB, flags, to)
    while answer is None:
        answer, count = pieces.go_on(program), count + 1
    assert answer.ret == to
    return count


@pytest.mark.parametrize("flags", [TO, TO | Mremap.DONTUNMAP.value])
@pytest.mark.parametrize("has_table", [False, True])
def test_a_gib_that_moves_is_told_in_pieces(flags: int, has_table: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tables are those of a move that nobody traces, as is everything else."""
    monkeypatch.setattr(pace, "_PIECE_SECONDS", 0.0)
    world = TracedWorld(check_invariants=False)
    world.kernel.sysctl.overcommit_memory = 1
    to = START + 16 * GIB
    tables, counts = [], []
    for is_traced in (False, True):
        program = world.attach()
        sparse(program)
        if has_table:
            # The GiB has an upper table at its new place already.
            program.mmap(1, at=to - PAGE_SIZE)
            program.mmap(1, at=to + 2 * GIB)
            program.store(to + 2 * GIB, b"x")
            program.call(Nr.MMAP, to + 5 * PMD_SIZE, PAGE_SIZE, RW, ANON | FIXED)
            program.store(to + 5 * PMD_SIZE, b"x")
        if is_traced:
            with world.trace("pte:set", "pte:clear", pids=(program.pid,), data_pages=1024) as trace:
                moved: list[int] = []
                records = trace.during(lambda p=program, m=moved: m.append(move(p, to, flags)))  # type: ignore[misc]
            counts += moved
            cleared, filled = told(records, PTE_CLEAR, "old"), told(records, PTE_SET, "new")
            if has_table:
                assert cleared.pop(0)[:2] == (to + 5 * PMD_SIZE, 1)
            assert [each[:2] for each in cleared] == [(START + table * PMD_SIZE, 1) for table in TABLES]
            assert filled == [(vaddr - START + to, count, entry) for vaddr, count, entry in cleared]
        else:
            counts.append(move(program, to, flags))
        for table in TABLES:
            assert program.load(to + table * PMD_SIZE, 3) == b"%03d" % table
        tables.append(program.mm.page_table.table_pages)
    assert tables[0] == tables[1]
    assert counts[1] > counts[0] + 32
    world.close()


def told(records: list[Record], event: Event, word: str) -> list[tuple[int, int, int]]:
    """Return the address, the number of pages and the entry of each record of an event, in order."""
    return [
        (record.fields["vaddr"], record.fields["nr_pages"], record.fields[word])
        for record in records
        if record.event is event
    ]


def test_many_entries_are_hidden_as_one_is() -> None:
    entries = [0, 0x67, 0x1234067, 0x8000_0001_2345_6067, 0x1234100, (1 << 64) - (5 << 9), (1 << 64) - (5 << 9) | 0x80]
    assert tracepoint._without_pfns(np.array(entries, dtype=np.uint64)).tolist() == list(map(without_pfn, entries))
