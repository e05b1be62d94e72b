"""What the host's page cache is taken to hold, verb by verb."""

from __future__ import annotations

import pytest

from kerneld.mm.files.host_cache import HostCache


@pytest.fixture
def host() -> HostCache:
    return HostCache()


def absent(host: HostCache) -> list[int]:
    found: list[int] = host.absent(0, 16).nonzero()[0].tolist()
    assert host.present(list(range(16))) == [index for index in range(16) if index not in found]
    return found


def uptodate(host: HostCache) -> list[int]:
    found = [index for index in range(16) if host.is_uptodate(index)]
    assert not host.are_all_uptodate or found == list(range(16))
    return found


def test_it_has_a_page_as_long_as_nothing_says_otherwise(host: HostCache) -> None:
    assert absent(host) == []
    assert all(map(host.has, range(16)))
    assert not host.is_hole(3)


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
