"""shadowpt_open: each errno and its order, the cut, and what a failure leaves."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import Any

import pytest

from kerneld.shadowpt import session as session_module
from kerneld.shadowpt.refusal import NoTarget
from shared.uapi.page import PAGE_SIZE, TASK_SIZE
from shared.uapi.shadowpt import MAX_SPT_RANGE
from tests.shadowpt.world import END, START, World, new_world, page
from tests.support.descriptors import open_descriptors
from tests.support.errors import fails
from tests.support.fake_shadowpt import FakeMm, FakeProcess


@pytest.fixture
def world() -> Iterator[World]:
    with new_world() as made:
        yield made


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (END, START),
        (START, START),
        (START + 1, END),
        (START, END - 1),
        (TASK_SIZE - PAGE_SIZE, TASK_SIZE + PAGE_SIZE),
        (TASK_SIZE, TASK_SIZE + MAX_SPT_RANGE),
        (2**64 - 2 * PAGE_SIZE, 2**64 - PAGE_SIZE),
    ],
)
def test_a_bad_range_is_einval(world: World, start: int, end: int) -> None:
    assert fails(errno.EINVAL, world.open, start, end)


def test_the_last_page_of_user_space_will_do(world: World) -> None:
    assert world.open(TASK_SIZE - PAGE_SIZE, TASK_SIZE) == TASK_SIZE


@pytest.mark.parametrize("end", [TASK_SIZE + PAGE_SIZE, 1 << 47, 1 << 63, 2**64 - PAGE_SIZE])
@pytest.mark.parametrize("start", [START, TASK_SIZE - MAX_SPT_RANGE])
def test_a_range_is_cut_before_its_end_is_looked_at(world: World, start: int, end: int) -> None:
    assert world.open(start, end) == start + MAX_SPT_RANGE


def test_a_target_that_is_not_there_is_einval(world: World) -> None:
    assert fails(errno.EINVAL, world.open, target=NoTarget("nobody"))
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
    assert fails(errno.EINVAL, world.open, target=NoTarget("nobody"), entries=bad)
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
