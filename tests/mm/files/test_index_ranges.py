"""Ranges of indexes against a plain set of them."""

from __future__ import annotations

from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from kerneld.mm.files import index_ranges
from kerneld.mm.files.index_ranges import MOST_RANGES, IndexRanges

CHANGES = st.lists(st.tuples(st.booleans(), st.integers(0, 20), st.integers(0, 20)), max_size=12)


@given(CHANGES)
def test_as_a_set(changes: list[tuple[bool, int, int]]) -> None:
    ranges, model = IndexRanges(), set[int]()
    for adds, first, last in changes:
        if adds:
            ranges.add(first, last)
            model |= set(range(first, last))
        else:
            ranges.remove(first, last)
            model -= set(range(first, last))
        assert [index for index in range(25) if index in ranges] == sorted(model)
        assert bool(ranges) == bool(model)
        assert all(
            ranges.meets(low, high) == any(index in model for index in range(low, high))
            for low in range(22)
            for high in range(low + 1, 23)
        )
        assert ranges.mask(3, 9).tolist() == [index in model for index in range(3, 12)]
    ranges.clear()
    assert not ranges
    assert 3 not in ranges


def test_a_very_long_range_takes_no_room() -> None:
    ranges = IndexRanges()
    ranges.add(0, 1 << 50)
    ranges.remove(7, 8)
    assert [index in ranges for index in (6, 7, 8, 1 << 49, 1 << 50)] == [True, False, True, True, False]


@given(CHANGES)
def test_with_room_for_few_ranges_some_is_forgotten_and_nothing_made_up(changes: list[tuple[bool, int, int]]) -> None:
    ranges, model = IndexRanges(), set[int]()
    with patch.object(index_ranges, "MOST_RANGES", 2):
        for adds, first, last in changes:
            before = {index for index in range(25) if index in ranges}
            (ranges.add if adds else ranges.remove)(first, last)
            changed = set(range(first, last))
            model = model | changed if adds else model - changed
            there = {index for index in range(25) if index in ranges}
            assert there <= model
            assert before <= there if adds else not there & changed
            assert len([index for index in there if index - 1 not in there]) <= 2


def test_every_other_page_takes_no_more_room_than_a_thousand_ranges() -> None:
    ranges = IndexRanges()
    for index in range(0, 10 * MOST_RANGES, 2):
        ranges.add(index, index + 1)
    assert ranges.is_full
    assert ranges.mask(0, 10 * MOST_RANGES).sum() == MOST_RANGES
    other = IndexRanges()
    other.add(0, 1 << 50)
    for index in range(1, 10 * MOST_RANGES, 2):
        other.remove(index, index + 1)
    # Of what is cut off the larger part is kept.
    assert other.mask(0, 10 * MOST_RANGES).sum() == MOST_RANGES - 1
    assert (1 << 50) - 1 in other
