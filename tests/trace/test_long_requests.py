"""A request that is done in pieces, between which others are served, begins once and ends once."""

from __future__ import annotations

import pytest

from kerneld.mm.space import pace
from shared.trace.events import ACCESS_ENTER, ACCESS_EXIT, PTE_SET, SYS_ENTER, SYS_EXIT
from shared.uapi.mman import Madv
from shared.uapi.page import PAGE_SIZE, PMD_SIZE
from shared.uapi.syscalls import Access, Nr
from tests.support.programs import BASE, READ, Program
from tests.support.traced import TracedWorld

PAGES = 2 * PMD_SIZE // PAGE_SIZE


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every piece is over at once: one is a leaf table."""
    monkeypatch.setattr(pace, "_PIECE_SECONDS", 0.0)


def test_a_long_touch_is_one_access(world: TracedWorld, program: Program) -> None:
    program.mmap(PAGES, at=BASE)
    with world.trace("machine:*", "pte:set", "raw_syscalls") as trace:
        records = trace.during(lambda: program.touch(0, PAGES, Access.READ))
    assert [record.event for record in records if record.event is not PTE_SET] == [ACCESS_ENTER, ACCESS_EXIT]
    assert (records[0].fields["id"], records[-1].fields["ret"]) == (Nr.TOUCH, PAGES)
    assert {record.nr for record in records} == {Nr.TOUCH}
    assert sum(record.fields["nr_pages"] for record in records if record.event is PTE_SET) == PAGES


def test_a_long_call_is_one_call(world: TracedWorld, program: Program) -> None:
    program.mmap(PAGES, READ, at=BASE)
    with world.trace("pte:set", "raw_syscalls") as trace:
        records = trace.during(lambda: program.call(Nr.MADVISE, BASE, PAGES * PAGE_SIZE, Madv.POPULATE_READ))
    assert [record.event for record in records if record.event is not PTE_SET] == [SYS_ENTER, SYS_EXIT]
    assert (records[0].fields["id"], records[-1].fields["ret"]) == (Nr.MADVISE, 0)
    assert {record.nr for record in records} == {Nr.MADVISE}
    assert sum(record.fields["nr_pages"] for record in records if record.event is PTE_SET) == PAGES


def test_a_long_look_at_proc_is_one_call(world: TracedWorld, program: Program) -> None:
    program.mmap(PAGES, at=BASE)
    program.touch(0, PAGES, Access.READ)
    with world.trace("raw_syscalls") as trace:
        records = trace.during(lambda: program.answer(Nr.PROCREAD, 0, 65536, data=b"self/smaps"))
    assert [(record.event, record.fields["id"]) for record in records] == [
        (SYS_ENTER, Nr.PROCREAD), (SYS_EXIT, Nr.PROCREAD),
    ]  # fmt: skip
