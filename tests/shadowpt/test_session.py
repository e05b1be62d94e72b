"""The session: each errno and its order, what the table says in every state, and who may do what."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kerneld.errors import SysError
from kerneld.shadowpt import session as session_module
from kerneld.shadowpt.session import ShadowPt
from shared.uapi.page import PAGE_SIZE, TASK_SIZE
from shared.uapi.shadowpt import MAX_SPT_RANGE
from tests.shadowpt.fakes import (
    SWAP_ENTRY,
    FakeMm,
    FakeProcess,
    FakeRam,
    HostMemory,
    open_descriptors,
    read_rows,
    read_sequence,
)

START, NR_PAGES = 0x4000_0000, 16
END = START + NR_PAGES * PAGE_SIZE
State = tuple[int, int]
"""state_flags and pfn of one page."""


def page(index: int) -> int:
    return START + index * PAGE_SIZE


class World:
    """A kernel's ShadowPt, an opener which is this real process, a target, and memory for the largest table."""

    def __init__(self) -> None:
        ram: Any = FakeRam()
        self.shadowpt = ShadowPt(ram)
        self.opener = FakeProcess(os.getpid(), FakeMm())
        self.mm = FakeMm()
        self.target = FakeProcess(4242, self.mm)
        self.memory = HostMemory(12)
        self.fds: list[int] = []

    def open(self, start: int = START, end: int = END, **changes: Any) -> int:
        arguments = {"opener": self.opener, "target": self.target, "entries": self.memory.address, **changes}
        end, fds = self.shadowpt.open(start=start, end=end, **arguments)
        self.fds.extend(fds)
        return end

    def open_and_start(self) -> None:
        self.open()
        self.shadowpt.start(self.opener)

    def rows(self) -> list[tuple[int, int, int]]:
        return read_rows(self.fds[-2], NR_PAGES)

    def states(self) -> list[State]:
        return [(flags, pfn) for _, pfn, flags in self.rows()]

    def vaddrs(self) -> list[int]:
        return [vaddr for vaddr, _, _ in self.rows()]

    def sequence(self) -> int:
        return read_sequence(self.fds[-1])

    def expected(self) -> list[State]:
        """The table, worked out page by page from the fake address space."""
        mm = self.target.mm
        states = []
        for vaddr in range(START, END, PAGE_SIZE):
            flags = 0 if vaddr not in mm.pages else 3 if mm.pages[vaddr] else 1
            entry = mm.ptes.get(vaddr, 0)
            states.append((flags | 4, entry >> 12) if entry & 0x101 else (flags, 0))
        return states

    def close(self) -> None:
        self.shadowpt.opener_gone(self.opener)
        self.memory.close()
        for fd in self.fds:
            os.close(fd)


@pytest.fixture
def world() -> Iterator[World]:
    before = open_descriptors()
    made = World()
    yield made
    made.close()
    assert open_descriptors() == before


def fails(code: int, call: Callable[..., Any], *arguments: Any, **named: Any) -> bool:
    with pytest.raises(SysError) as caught:
        call(*arguments, **named)
    return caught.value.errno == code


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (END, START),
        (START, START),
        (START + 1, END),
        (START, END - 1),
        (START, TASK_SIZE + PAGE_SIZE),
        (2**64 - 2 * PAGE_SIZE, 2**64 - PAGE_SIZE),
    ],
)
def test_a_bad_range_is_einval(world: World, start: int, end: int) -> None:
    assert fails(errno.EINVAL, world.open, start, end)


def test_the_last_page_of_user_space_will_do(world: World) -> None:
    assert world.open(TASK_SIZE - PAGE_SIZE, TASK_SIZE) == TASK_SIZE


def test_a_target_that_is_not_there_is_einval(world: World) -> None:
    assert fails(errno.EINVAL, world.open, target=None)
    world.target.exit()
    assert fails(errno.EINVAL, world.open)


def test_a_second_open_is_ebusy_for_anyone(world: World) -> None:
    world.open()
    assert fails(errno.EBUSY, world.open)
    assert fails(errno.EBUSY, world.open, opener=FakeProcess(1, FakeMm()))


def test_the_order_of_open_errors(world: World) -> None:
    world.open()
    bad = world.memory.address + 1
    assert fails(errno.EINVAL, world.open, END, START, entries=bad)
    assert fails(errno.EINVAL, world.open, target=None, entries=bad)
    assert fails(errno.EBUSY, world.open, entries=bad)
    world.shadowpt.close(world.opener)
    assert fails(errno.EINVAL, world.open, entries=bad)
    world.open()


def test_a_long_range_is_cut_at_the_end_before_entries_are_looked_at(world: World) -> None:
    assert fails(errno.EINVAL, world.open, START, START + MAX_SPT_RANGE, entries=world.memory.address + PAGE_SIZE)
    assert world.open(START, START + MAX_SPT_RANGE + PAGE_SIZE) == START + MAX_SPT_RANGE
    assert os.fstat(world.fds[-2]).st_size == 2048 * 24
    world.shadowpt.close(world.opener)
    assert world.open(START, START + MAX_SPT_RANGE) == START + MAX_SPT_RANGE


def test_entries_may_have_just_the_size_of_the_table(world: World) -> None:
    last_page = world.memory.address + 11 * PAGE_SIZE
    room = PAGE_SIZE // 24
    assert fails(errno.EINVAL, world.open, START, page(room + 1), entries=last_page)
    assert world.open(START, page(room), entries=last_page) == page(room)


@pytest.mark.parametrize("step", ["table", "descriptors"])
def test_a_host_without_memory_is_enomem_and_leaves_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    before = open_descriptors()

    def fail(*_args: Any) -> None:
        raise OSError(errno.EMFILE, "no more")

    with monkeypatch.context() as broken:
        if step == "table":
            broken.setattr(session_module, "ShadowTable", fail)
        else:
            broken.setattr("kerneld.shadowpt.segment.Segment.client_fd", fail)
        assert fails(errno.ENOMEM, world.open)
    assert open_descriptors() == before
    world.open()


@pytest.mark.parametrize("name", ["close", "start", "stop"])
def test_without_a_table_is_einval_and_another_process_is_eperm(world: World, name: str) -> None:
    call = getattr(world.shadowpt, name)
    assert fails(errno.EINVAL, call, world.opener)
    world.open()
    assert fails(errno.EPERM, call, world.target)
    # A later process with the opener's pid is another process.
    assert fails(errno.EPERM, call, FakeProcess(world.opener.pid, FakeMm()))
    call(world.opener)


def test_an_open_table_holds_zeros_until_it_is_started(world: World) -> None:
    world.mm.map(START, END)
    world.open()
    world.mm.set_pfn(START, 9)
    world.shadowpt.flush()
    assert world.rows() == [(0, 0, 0)] * NR_PAGES
    assert world.sequence() == 0


def test_start_says_what_is_so(world: World) -> None:
    world.mm.map(page(-3), page(4))
    world.mm.map(page(6), page(8), anonymous=False)
    world.mm.map(page(12), page(20))
    world.mm.set_pfn(page(0), 11)
    world.mm.set_pfn(page(7), 12)
    world.mm.set_pfn(page(15), 13)
    world.mm.set_entry(page(1), SWAP_ENTRY)
    world.mm.set_entry(page(2), 14 << 12 | 1 << 8)
    world.mm.set_entry(page(3), 15 << 12 | 1 << 8 | 1 << 63)
    world.mm.set_pfn(page(16), 16)
    world.open_and_start()
    assert world.vaddrs() == [page(index) for index in range(NR_PAGES)]
    anonymous: list[State] = [(7, 11), (3, 0), (7, 14), (7, 15)]
    file: list[State] = [(1, 0), (5, 12)]
    assert world.states() == [*anonymous, *[(0, 0)] * 2, *file, *[(0, 0)] * 4, *[(3, 0)] * 3, (7, 13)]
    assert world.sequence() == 2


def test_changes_follow_and_only_at_the_flush(world: World) -> None:
    world.open_and_start()
    world.mm.map(page(2), page(6))
    world.mm.set_pfn(page(3), 21)
    assert world.states() == [(0, 0)] * NR_PAGES
    assert world.shadowpt.dirty
    world.shadowpt.flush()
    assert not world.shadowpt.dirty
    assert world.states()[2:6] == [(3, 0), (7, 21), (3, 0), (3, 0)]
    assert world.sequence() == 4
    world.mm.set_pfn(page(3), 22)
    world.shadowpt.flush()
    assert world.states()[3] == (7, 22)
    world.mm.unmap(page(0), page(4))
    world.shadowpt.flush()
    assert world.states()[:6] == [(0, 0)] * 4 + [(3, 0)] * 2
    assert world.sequence() == 8


def test_changes_outside_the_range_are_none(world: World) -> None:
    world.open_and_start()
    world.mm.map(page(-4), page(0))
    world.mm.map(page(NR_PAGES), page(NR_PAGES + 4))
    assert not world.shadowpt.dirty
    world.mm.map(page(-4), page(NR_PAGES + 4))
    assert world.shadowpt.dirty == [(START, END)]
    world.shadowpt.flush()
    assert world.states() == [(3, 0)] * NR_PAGES


def test_many_scattered_changes_are_all_seen(world: World) -> None:
    world.open_and_start()
    world.mm.map(START, END)
    world.shadowpt.flush()
    for index in (15, 0, 13, 2, 11, 4, 9, 6, 7, 8):
        world.mm.set_pfn(page(index), 100 + index)
    world.shadowpt.flush()
    assert world.states() == world.expected()


def test_two_parts_of_one_call_are_one_moment(world: World) -> None:
    world.open_and_start()
    world.mm.map(page(1), page(2))
    world.mm.map(page(9), page(11))
    world.shadowpt.flush()
    assert world.sequence() == 4


def test_stop_leaves_the_table_and_lets_the_target_go(world: World) -> None:
    world.open_and_start()
    assert world.mm.notifiers == [world.shadowpt]
    world.mm.map(START, page(2))
    world.shadowpt.stop(world.opener)
    assert world.states()[:3] == [(3, 0), (3, 0), (0, 0)]
    assert world.mm.notifiers == []
    world.mm.unmap(START, END)
    world.shadowpt.flush()
    assert world.states()[:3] == [(3, 0), (3, 0), (0, 0)]
    world.shadowpt.stop(world.opener)
    world.shadowpt.start(world.opener)
    assert world.states() == [(0, 0)] * NR_PAGES


def test_a_second_start_initialises_again_and_registers_once(world: World) -> None:
    world.open_and_start()
    world.mm.pages[page(1)] = True
    world.shadowpt.start(world.opener)
    assert world.states()[:3] == [(0, 0), (3, 0), (0, 0)]
    assert world.mm.notifiers == [world.shadowpt]


def test_close_empties_the_table_and_lets_the_next_open(world: World) -> None:
    world.mm.map(START, END)
    world.open_and_start()
    first = world.fds[-2:]
    world.shadowpt.close(world.opener)
    assert world.mm.notifiers == []
    assert read_rows(first[0], NR_PAGES) == [(0, 0, 0)] * NR_PAGES
    assert read_sequence(first[1]) == 4
    world.open_and_start()
    assert world.states() == [(3, 0)] * NR_PAGES
    assert read_rows(first[0], NR_PAGES) == [(0, 0, 0)] * NR_PAGES


def test_the_openers_end_closes_and_nobody_elses_does(world: World) -> None:
    world.mm.map(START, END)
    world.open_and_start()
    world.shadowpt.opener_gone(world.target)
    world.shadowpt.opener_gone(FakeProcess(world.opener.pid, FakeMm()))
    assert world.states() == [(3, 0)] * NR_PAGES
    world.shadowpt.opener_gone(world.opener)
    assert world.rows() == [(0, 0, 0)] * NR_PAGES
    assert world.mm.notifiers == []
    assert fails(errno.EINVAL, world.shadowpt.stop, world.opener)
    world.shadowpt.opener_gone(world.opener)
    world.open()


def test_the_targets_end_takes_flags_and_frames_for_good(world: World) -> None:
    world.mm.map(START, END)
    world.mm.set_pfn(page(1), 33)
    world.open_and_start()
    world.mm.set_pfn(page(2), 34)
    world.target.exit()
    vaddrs = [page(index) for index in range(NR_PAGES)]
    assert world.rows() == [(vaddr, 0, 0) for vaddr in vaddrs]
    assert world.sequence() % 2 == 0
    # The mm is dead; nothing of it is looked at any more, and nothing it says is heard.
    world.shadowpt.invalidate_range(START, END)
    world.shadowpt.flush()
    assert world.states() == [(0, 0)] * NR_PAGES
    assert fails(errno.EBUSY, world.open, target=world.opener)
    world.shadowpt.stop(world.opener)
    world.shadowpt.start(world.opener)
    assert world.rows() == [(vaddr, 0, 0) for vaddr in vaddrs]
    world.shadowpt.close(world.opener)


@pytest.mark.parametrize("started", [True, False])
def test_a_target_that_ends_while_stopped_is_noticed(world: World, started: bool) -> None:
    world.mm.map(START, END)
    world.open()
    if started:
        world.shadowpt.start(world.opener)
        world.shadowpt.stop(world.opener)
    before = world.states()
    world.target.exit()
    assert world.states() == before
    world.shadowpt.start(world.opener)
    assert world.rows() == [(page(index), 0, 0) for index in range(NR_PAGES)]
    assert world.mm.notifiers == []


def test_execve_goes_on_with_the_new_address_space(world: World) -> None:
    world.mm.map(START, page(8))
    world.mm.set_pfn(page(1), 41)
    world.open_and_start()
    old, world.target.mm = world.mm, FakeMm()
    world.target.mm.map(page(4), END, anonymous=False)
    world.target.mm.set_pfn(page(5), 42)
    old.exec(world.target.mm)
    assert old.notifiers == []
    old.unmap(START, END)
    world.shadowpt.flush()
    assert world.states() == world.expected()
    world.target.mm.set_pfn(page(6), 43)
    world.shadowpt.flush()
    assert world.states() == world.expected()
    world.target.exit()
    assert world.states() == [(0, 0)] * NR_PAGES


def test_execve_while_stopped_is_noticed_at_start(world: World) -> None:
    world.mm.map(START, END)
    world.open()
    world.target.mm = FakeMm()
    world.target.mm.map(START, page(1), anonymous=False)
    world.shadowpt.start(world.opener)
    assert world.states() == [(1, 0)] + [(0, 0)] * (NR_PAGES - 1)
    assert world.mm.notifiers == []


def test_a_process_may_watch_itself_to_its_end(world: World) -> None:
    world.opener.mm.map(START, END)
    world.open(target=world.opener)
    world.shadowpt.start(world.opener)
    assert world.states() == [(3, 0)] * NR_PAGES
    world.opener.exit()
    world.shadowpt.opener_gone(world.opener)
    assert world.rows() == [(0, 0, 0)] * NR_PAGES


@pytest.mark.parametrize("started", [True, False])
def test_page_contents_of_what_is_mapped_in_the_range_now(world: World, started: bool) -> None:
    contents = world.shadowpt.page_contents
    assert fails(errno.EINVAL, contents, 51)
    world.mm.map(page(-1), END)
    world.mm.set_pfn(page(-1), 50)
    world.mm.set_pfn(page(0), 51)
    world.mm.set_entry(page(1), 52 << 12 | 1 << 8)
    world.mm.set_entry(page(2), 53 << 12)
    assert fails(errno.EINVAL, contents, 51)
    world.open()
    if started:
        world.shadowpt.start(world.opener)
    assert contents(51) == (51).to_bytes(8, "little") * 512
    assert contents(52) == (52).to_bytes(8, "little") * 512
    for pfn in (0, 50, 53, 54, 2**52 | 51, 2**63, 2**64 - 1):
        assert fails(errno.EINVAL, contents, pfn)
    world.mm.unmap(page(0), page(1))
    assert fails(errno.EINVAL, contents, 51)
    world.target.exit()
    assert fails(errno.EINVAL, contents, 52)


def test_a_stopped_kernel_is_not_called(world: World) -> None:
    world.open()
    assert world.mm.notifiers == []
    world.mm.map(START, END)
    assert world.shadowpt.dirty == []
