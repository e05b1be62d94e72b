"""Ranges of indexes against a plain set of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kerneld.mm.index_ranges import IndexRanges

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
        assert ranges.mask(3, 9).tolist() == [index in model for index in range(3, 12)]
    ranges.clear()
    assert not ranges
    assert 3 not in ranges


def test_a_very_long_range_takes_no_room() -> None:
    ranges = IndexRanges()
    ranges.add(0, 1 << 50)
    ranges.remove(7, 8)
    assert [index in ranges for index in (6, 7, 8, 1 << 49, 1 << 50)] == [True, False, True, True, False]
