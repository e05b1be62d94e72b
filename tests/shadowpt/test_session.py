"""The session: what the table says in every state, and who may do what."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from tests.shadowpt.world import END, NR_PAGES, START, State, World, new_world, page
from tests.support.errors import fails
from tests.support.fake_shadowpt import SWAP_ENTRY, FakeMm, FakeProcess, read_rows, read_sequence


@pytest.fixture
def world() -> Iterator[World]:
    with new_world() as made:
        yield made


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


def test_an_ended_target_is_not_looked_at_even_if_its_mm_is_still_there(world: World) -> None:
    world.mm.map(START, END)
    world.mm.set_pfn(START, 9)
    world.open()
    world.target.ended = True
    world.shadowpt.start(world.opener)
    assert world.states() == [(0, 0)] * NR_PAGES
    assert fails(errno.EINVAL, world.shadowpt.page_contents, 9)


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
