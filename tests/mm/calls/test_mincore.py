"""mincore: errors in order, and which pages are said to be in memory."""

from __future__ import annotations

import errno

import pytest

from kerneld.mm.calls.madvise import do_madvise
from kerneld.mm.calls.mincore import do_mincore
from kerneld.mm.calls.mprotect import do_mprotect
from kerneld.mm.space.mm import MmStruct
from shared.uapi.mman import Madv
from shared.uapi.page import PAGE_SIZE, PMD_SIZE, TASK_SIZE
from tests.support.machine import (
    BASE,
    NONE,
    PRIVATE,
    READ,
    RW,
    SHARED,
    SHARED_ANON,
    Machine,
    errno_of,
    load,
    mmap,
    page,
    store,
)

MANY = 1 << 20


def mincore(mm: MmStruct, first: int, count: int) -> list[int]:
    return list(do_mincore(mm, page(first), count * PAGE_SIZE, MANY))


@pytest.mark.parametrize(
    ("start", "length", "room", "expected"),
    [
        pytest.param(BASE + 1, 1 << 60, 0, errno.EINVAL, id="not aligned, before all else"),
        pytest.param(BASE, 1 << 60, 0, errno.ENOMEM, id="past user space, before the vector"),
        pytest.param(BASE, (1 << 64) - 1, 0, errno.ENOMEM, id="wraps"),
        pytest.param(page(9), 2 * PAGE_SIZE, 1, errno.EMSGSIZE, id="more than an answer carries, before the hole"),
        pytest.param(page(9), PAGE_SIZE, 1, errno.ENOMEM, id="nothing there"),
        pytest.param(page(1), 2 * PAGE_SIZE, 2, errno.ENOMEM, id="a hole at the end"),
        pytest.param(page(-1), 2 * PAGE_SIZE, 2, errno.ENOMEM, id="a hole at the start"),
        pytest.param(TASK_SIZE - PAGE_SIZE, PAGE_SIZE, 1, errno.ENOMEM, id="the last page of user space"),
    ],
)
def test_errors_in_order(mm: MmStruct, start: int, length: int, room: int, expected: int) -> None:
    mmap(mm, 2, at=BASE)
    assert errno_of(lambda: do_mincore(mm, start, length, room)) == expected


def test_a_length_of_zero_needs_no_mapping(mm: MmStruct) -> None:
    assert do_mincore(mm, BASE, 0, 0) == b""


def test_a_length_is_rounded_up(mm: MmStruct) -> None:
    mmap(mm, 2, at=BASE)
    assert do_mincore(mm, BASE, PAGE_SIZE + 1, 2) == b"\0\0"


def test_anonymous_memory_by_its_entries(mm: MmStruct) -> None:
    mmap(mm, 5, at=BASE)
    load(mm, page(1))
    store(mm, page(2), b"x")
    store(mm, page(3), b"x")
    do_madvise(mm, page(3), PAGE_SIZE, Madv.DONTNEED)
    assert mincore(mm, 0, 5) == [0, 1, 1, 0, 0]


def test_memory_without_rights_is_there_all_the_same(mm: MmStruct) -> None:
    mmap(mm, 2, at=BASE)
    store(mm, BASE, b"x")
    do_mprotect(mm, BASE, 2 * PAGE_SIZE, NONE)
    assert mincore(mm, 0, 2) == [1, 0]


def test_across_mappings_and_leaf_tables(mm: MmStruct) -> None:
    start = BASE + PMD_SIZE - 2 * PAGE_SIZE
    mmap(mm, 2, at=start)
    mmap(mm, 2, READ, at=start + 2 * PAGE_SIZE)
    for number in (1, 2):
        load(mm, start + number * PAGE_SIZE)
    assert list(do_mincore(mm, start, 4 * PAGE_SIZE, MANY)) == [0, 1, 1, 0]


@pytest.mark.parametrize("flags", [PRIVATE, SHARED])
def test_a_file_is_in_the_hosts_cache_up_to_its_end(machine: Machine, mm: MmStruct, flags: int) -> None:
    file, _ = machine.new_file(bytes(2 * PAGE_SIZE + 1))
    mmap(mm, 4, RW, flags, at=BASE, file=file, pgoff=1)
    assert mincore(mm, 0, 4) == [1, 1, 0, 0]
    store(mm, BASE, b"x")
    assert mincore(mm, 0, 4) == [1, 1, 0, 0]


def test_shared_anonymous_memory_by_what_anybody_has_touched(machine: Machine, mm: MmStruct) -> None:
    mmap(mm, 3, RW, SHARED_ANON, at=BASE)
    child = machine.fork(mm)
    store(child, page(1), b"x")
    assert mincore(mm, 0, 3) == [0, 1, 0]
    do_madvise(mm, page(1), PAGE_SIZE, Madv.REMOVE)
    assert mincore(mm, 0, 3) == [0, 0, 0]


def test_of_a_file_that_is_not_ones_to_write_all_is_said_to_be_there(machine: Machine, mm: MmStruct) -> None:
    """Source: Linux v6.8 mm/mincore.c:can_do_mincore()."""
    file, _ = machine.new_file(b"f" * PAGE_SIZE)
    mmap(mm, 3, READ, PRIVATE, at=BASE, file=file)
    mmap(mm, 1, at=page(3))
    assert do_mincore(mm, BASE, 4 * PAGE_SIZE, MANY, lambda asked: asked is not file) == b"\1\1\1\0"
    assert do_mincore(mm, BASE, 4 * PAGE_SIZE, MANY, lambda asked: asked is file) == b"\1\0\0\0"
