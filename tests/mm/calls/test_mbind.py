"""mbind: which errors come before any change. Programs inside check the rest: tests/native/c/policies.c."""

from __future__ import annotations

import errno

import pytest

from kerneld.hw.paging import PTRS_PER_TABLE as PTRS
from kerneld.mm.calls.mbind import MPOL_MF_MOVE, MPOL_MF_STRICT, mbind_in_pieces
from kerneld.mm.calls.mprotect import do_mprotect
from kerneld.mm.space.mempolicy import MPOL_BIND, MPOL_DEFAULT, MPOL_LOCAL, ONE_NODE
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.munmap import do_munmap
from kerneld.mm.space.pace import Pace, Steps, drain
from shared.uapi.page import PAGE_SIZE, PMD_SIZE
from tests.support.machine import BASE, READ, RW, errno_of, load, mmap, page, store


def mbind(mm: MmStruct, first: int, count: int, mode: int, flags: int = 0, nodes: int = 0) -> None:
    drain(mbind_in_pieces(mm, page(first), count * PAGE_SIZE, mode, nodes, flags, may_move_all=True))


def policies(mm: MmStruct) -> list[int]:
    return [vma.policy for vma in mm.vmas]


@pytest.fixture
def region(mm: MmStruct) -> MmStruct:
    """Pages 0 to 3, of which 2 has a frame; a hole; page 5."""
    mmap(mm, 4, at=BASE)
    mmap(mm, 1, at=page(5))
    store(mm, page(2), b"\x07")
    return mm


@pytest.mark.parametrize(
    ("count", "mode", "flags", "nodes"),
    [
        pytest.param(2, MPOL_LOCAL, MPOL_MF_STRICT, 0, id="no page is there"),
        pytest.param(4, MPOL_LOCAL, MPOL_MF_STRICT | MPOL_MF_MOVE, 0, id="pages may move"),
        pytest.param(4, MPOL_LOCAL, 0, 0, id="not strict"),
        pytest.param(4, MPOL_BIND, MPOL_MF_STRICT, ONE_NODE, id="the node is named"),
        pytest.param(6, MPOL_DEFAULT, MPOL_MF_STRICT, 0, id="the default policy is for all nodes and has holes"),
    ],
)
def test_strict_finds_nothing_wrong(region: MmStruct, count: int, mode: int, flags: int, nodes: int) -> None:
    mbind(region, 0, count, mode, flags, nodes)
    assert any(policies(region)) == (mode != MPOL_DEFAULT)


@pytest.mark.parametrize(
    ("first", "count", "expected"),
    [
        pytest.param(0, 4, errno.EIO, id="a page on node 0, which MPOL_LOCAL does not name"),
        pytest.param(0, 6, errno.EFAULT, id="the hole right behind the mapping comes first"),
        pytest.param(4, 2, errno.EFAULT, id="a hole at the start"),
        pytest.param(4, 1, errno.EFAULT, id="a hole alone"),
    ],
)
def test_strict_fails_before_any_change(region: MmStruct, first: int, count: int, expected: int) -> None:
    assert errno_of(lambda: mbind(region, first, count, MPOL_LOCAL, MPOL_MF_STRICT)) == expected
    assert not any(policies(region))


def test_a_zero_page_is_on_no_node(region: MmStruct) -> None:
    load(region, page(0), 1)
    mbind(region, 0, 2, MPOL_LOCAL, MPOL_MF_STRICT)
    assert any(policies(region))


@pytest.fixture
def begun(mm: MmStruct, monkeypatch: pytest.MonkeyPatch) -> Steps:
    """A strict mbind of three VMAs, each of one leaf table, that has checked the first. The second has a frame."""
    monkeypatch.setattr(Pace, "is_over", lambda _pace: True)
    monkeypatch.setattr("kerneld.mm.space.pace._AT_ONCE", PMD_SIZE)
    for number, prot in enumerate((RW, READ, RW)):
        mmap(mm, PTRS, prot, at=page(number * PTRS))
        load(mm, page(number * PTRS))
    do_mprotect(mm, page(PTRS), PAGE_SIZE, RW)
    store(mm, page(PTRS), b"\x07")
    do_mprotect(mm, page(PTRS), PAGE_SIZE, READ)
    steps = mbind_in_pieces(mm, BASE, 3 * PMD_SIZE, MPOL_LOCAL, 0, MPOL_MF_STRICT, may_move_all=True)
    next(steps)
    return steps


def test_what_is_checked_already_may_go_away(mm: MmStruct, begun: Steps) -> None:
    do_munmap(mm, BASE, PMD_SIZE)
    assert errno_of(lambda: drain(begun)) == errno.EIO
    assert not any(policies(mm))


def test_what_is_checked_next_may_go_away(mm: MmStruct, begun: Steps) -> None:
    do_munmap(mm, page(PTRS), PMD_SIZE)
    assert errno_of(lambda: drain(begun)) == errno.EFAULT
    assert not any(policies(mm))


def test_what_is_checked_next_may_come_to_another_place(mm: MmStruct, begun: Steps) -> None:
    """The frame is no more in the range, and the mappings of the range are one."""
    mmap(mm, 2 * PTRS, RW, at=page(PTRS))
    drain(begun)
    (only,) = mm.vmas
    assert (only.start, only.end, only.policy != 0) == (BASE, BASE + 3 * PMD_SIZE, True)


def test_the_end_may_go_away(mm: MmStruct, begun: Steps) -> None:
    do_munmap(mm, page(PTRS), 2 * PMD_SIZE)
    assert errno_of(lambda: drain(begun)) == errno.EFAULT
    assert not any(policies(mm))


def test_mappings_without_pages_are_checked_in_pieces_too(mm: MmStruct, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pace, "is_over", lambda _pace: True)
    for number in range(4):
        mmap(mm, 1, READ if number % 2 else RW, at=page(number))
    steps = mbind_in_pieces(mm, BASE, 4 * PAGE_SIZE, MPOL_LOCAL, 0, 0, may_move_all=True)
    for _ in range(3):
        next(steps)
        assert not any(policies(mm))
    drain(steps)
    assert all(policies(mm))
