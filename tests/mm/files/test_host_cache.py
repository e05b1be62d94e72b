"""What the host's page cache is taken to hold, verb by verb."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest

from kerneld.mm.files.host_cache import WINDOW_PAGES, HostCache


@pytest.fixture
def host() -> HostCache:
    return HostCache()


def absent(host: HostCache) -> list[int]:
    found: list[int] = host.absent(0, 16).nonzero()[0].tolist()
    assert host.present(list(range(16))) == [index for index in range(16) if index not in found]
    return found


def uptodate(host: HostCache) -> list[int]:
    found = [index for index in range(16) if host.is_uptodate(index)]
    for first, last in itertools.combinations(range(17), 2):
        assert not host.are_uptodate(first, last) or set(range(first, last)) <= set(found)
    return found


def test_it_has_a_page_as_long_as_nothing_says_otherwise(host: HostCache) -> None:
    assert absent(host) == []
    assert all(map(host.has, range(16)))
    assert not host.is_hole(3)


def test_a_page_that_is_absent_somewhere_else_does_not_matter(host: HostCache) -> None:
    host.drop(7)
    assert host.are_uptodate(0, 7)
    assert host.are_uptodate(8, 16)
    assert not host.are_uptodate(0, 8)
    assert not host.are_uptodate(7, 16)


def test_a_hole_is_absent_until_somebody_reads_it_and_a_hole_until_somebody_writes(host: HostCache) -> None:
    host.add_hole(2, 6)
    assert absent(host) == [2, 3, 4, 5]
    host.read(3, 4)
    assert absent(host) == [2, 4, 5]
    assert host.is_hole(3)
    host.write(4, 5)
    assert not host.is_hole(4)
    assert absent(host) == [2, 5]
    host.write_back(5)
    assert not host.is_hole(5)
    assert not host.has(5)


def test_a_fault_of_what_lies_on_the_disk_waits_for_all_of_it(host: HostCache) -> None:
    for index in (3, 4, 5):
        host.drop(index)
    host.ask_disk(4, 0, 16, near=4)
    assert uptodate(host) == list(range(16))


def test_a_fault_of_a_hole_does_not_wait_for_what_lies_on_the_disk(host: HostCache) -> None:
    host.add_hole(4, 6)
    for index in (2, 3, 9):
        host.drop(index)
    host.ask_disk(4, 0, 16, near=4)
    assert absent(host) == []
    # 5 is a hole too, and 9 is too far away.
    assert [index for index in range(16) if index not in uptodate(host)] == [2, 3]
    host.fault_is_over()
    assert uptodate(host) == list(range(16))


def test_readahead_leaves_a_place_in_the_cache_to_the_fault_that_reads_it(host: HostCache) -> None:
    host.add_hole(4, 6)
    host.make_place(4, is_hole=True)
    host.read(0, 16)
    assert absent(host) == [4]
    assert not host.read_place(5)
    assert host.read_place(4)
    assert not host.read_place(4)
    assert absent(host) == []


def test_a_place_of_what_is_no_hole_is_read_at_once(host: HostCache) -> None:
    host.drop(4)
    host.make_place(4, is_hole=False)
    assert host.has(4)


@pytest.mark.parametrize("end", ["truncate", "punch", "clear"])
def test_a_place_goes_with_its_page(host: HostCache, end: str) -> None:
    host.add_hole(4, 6)
    host.make_place(4, is_hole=True)
    if end == "truncate":
        host.truncate(4)
        assert absent(host) == []
    elif end == "punch":
        host.add_hole(4, 5)
        assert absent(host) == [4, 5]
    else:
        host.clear()
        assert absent(host) == []
    assert not host.read_place(4)


def test_reclaim_is_waited_for_once(host: HostCache) -> None:
    host.set_reclaim(3)
    host.set_reclaim(4)
    assert host.has_reclaim(3)
    assert 3 not in uptodate(host)
    assert host.clear_reclaim(3)
    assert not host.clear_reclaim(3)
    host.forget_reclaim([4, 5])
    assert uptodate(host) == list(range(16))


class Host:
    """A host that lacks some pages, and counts how often it is asked."""

    def __init__(self, *lacks: int) -> None:
        self.lacks = set(lacks)
        self.asked = 0

    def ask(self, first: int, count: int) -> npt.NDArray[np.bool_]:
        self.asked += 1
        return np.array([index in self.lacks for index in range(first, first + count)], dtype=np.bool_)


def test_the_host_is_asked_once_for_each_window() -> None:
    real = Host(3, WINDOW_PAGES)
    host = HostCache(real.ask)
    assert [host.has(index) for index in range(3)] == [True] * 3
    assert host.present([4, 5, WINDOW_PAGES - 1]) == [4, 5, WINDOW_PAGES - 1]
    assert real.asked == 1
    assert absent(host) == [3]
    assert not host.has(WINDOW_PAGES)


def test_what_the_host_lacked_is_not_absent_once_the_host_has_it() -> None:
    real = Host(3, 4, 7)
    host = HostCache(real.ask)
    assert absent(host) == [3, 4, 7]
    real.lacks = {7}
    assert host.has(3)
    assert absent(host) == [7]


def test_what_was_dropped_or_is_a_new_hole_is_absent_whatever_the_host_says() -> None:
    real = Host(3, 4)
    host = HostCache(real.ask)
    assert absent(host) == [3, 4]
    real.lacks.clear()
    host.drop(3)
    host.add_hole(4, 5)
    assert absent(host) == [3, 4]


@pytest.mark.parametrize("start", [0, 3])
def test_what_is_read_ahead_is_there_although_the_host_has_not_read_it(start: int) -> None:
    real = Host(*range(4 * WINDOW_PAGES))
    host = HostCache(real.ask)
    host.read(start, 2 * WINDOW_PAGES + 5)
    assert host.absent(0, 3 * WINDOW_PAGES).nonzero()[0].tolist() == [
        *range(start),
        *range(2 * WINDOW_PAGES + 5, 3 * WINDOW_PAGES),
    ]


def test_a_file_is_asked_for_again_when_it_is_mapped_again() -> None:
    real = Host(3)
    host = HostCache(real.ask)
    assert absent(host) == [3]
    host.clear()
    real.lacks = {5}
    assert absent(host) == [5]
