"""mbind: which errors come before any change. Programs inside check the rest: tests/native/c/policies.c."""

from __future__ import annotations

import errno

import pytest

from kerneld.mm.calls.mbind import MPOL_MF_MOVE, MPOL_MF_STRICT, mbind_in_pieces
from kerneld.mm.space.mempolicy import MPOL_BIND, MPOL_DEFAULT, MPOL_LOCAL, ONE_NODE
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.pace import drain
from shared.uapi.page import PAGE_SIZE
from tests.support.machine import BASE, errno_of, load, mmap, page, store


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
