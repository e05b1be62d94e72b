"""Maps and sets of page indexes, against a dict and a set; and that one index more never moves all the others."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerneld.mm.files.page_indexes import NODE_INDEXES, IndexMap, IndexSet
from tests.support.machine import Machine

EDGES = [0, 1, NODE_INDEXES - 1, NODE_INDEXES, NODE_INDEXES + 1, 5 * NODE_INDEXES, (1 << 52) - 1]
indexes = st.sampled_from(EDGES)
ranges = st.tuples(indexes, st.sampled_from([1, 2, NODE_INDEXES, 1 << 52])).map(lambda r: (r[0], r[0] + r[1]))
COUNT, AT_ONCE = 49_152, 4096
MOST_BYTES = 512 << 10
"""Far less than the table of a dict, or a set, of so many entries."""


@given(st.lists(st.tuples(st.sampled_from(["set", "run", "pop", "some", "clear"]), indexes), max_size=30), ranges)
def test_a_map_is_a_dict(steps: list[tuple[str, int]], span: tuple[int, int]) -> None:
    ours, model = IndexMap(), dict[int, int]()
    for number, (step, index) in enumerate(steps):
        if step == "set":
            ours[index] = model[index] = number
        elif step == "run":
            # Within one node, or from one into the next.
            ours.update([index, index + 1], [number, -number])
            model.update({index: number, index + 1: -number})
        elif step == "pop" and index in model:
            assert ours.pop(index) == model.pop(index)
        elif step == "pop":
            with pytest.raises(KeyError):
                del ours[index]
        elif step == "some":
            taken = dict(zip(*ours.pop_some(2), strict=True))
            assert len(taken) == min(2, len(model))
            assert taken.items() <= model.items()
            model = {index: value for index, value in model.items() if index not in taken}
        elif number % 5 == 0:
            ours.clear()
            model.clear()
        assert dict(ours.items()) == model
    first, last = span
    assert [*zip(ours, ours.values(), strict=True)] == [*ours.items()]
    assert (len(ours), bool(ours)) == (len(model), bool(model))
    assert [(index in ours, ours.get(index)) for index in EDGES] == [(i in model, model.get(i)) for i in EDGES]
    assert list(ours.between(first, last)) == sorted(index for index in model if first <= index < last)
    assert [i for span in ours.spans(first, last) for i in ours.between(*span)] == list(ours.between(first, last))
    near = range(first, min(last, first + 20))
    assert ours.run(near.start, near.stop) == [model.get(index) for index in near]


@given(st.lists(st.tuples(st.sampled_from(["add", "discard", "less"]), indexes), max_size=30), ranges)
def test_a_set_is_a_set(steps: list[tuple[str, int]], span: tuple[int, int]) -> None:
    ours, model = IndexSet(), set[int]()
    for step, index in steps:
        if step == "less":
            ours.difference_update([index, 7, *EDGES[:2]])
            model.difference_update([index, 7, *EDGES[:2]])
        else:
            getattr(ours, step)(index)
            getattr(model, step)(index)
    assert (set(ours), len(ours), bool(ours)) == (model, len(model), bool(model))
    assert list(ours.between(*span)) == sorted(index for index in model if span[0] <= index < span[1])


@pytest.mark.parametrize("count", [1, 24, 25, 300])
def test_a_set_of_many(count: int) -> None:
    """Few indexes of a node go another way than many."""
    ours, model = IndexSet(), set(range(NODE_INDEXES - count, NODE_INDEXES + 2 * count, 3))
    for index in model:
        ours.add(index)
    assert list(ours.between(5, NODE_INDEXES * 2)) == sorted(ours) == sorted(model)
    ours.difference_update(range(NODE_INDEXES - 1, NODE_INDEXES + count))
    assert set(ours) == model - set(range(NODE_INDEXES - 1, NODE_INDEXES + count))


def test_the_collector_does_not_go_through_a_set() -> None:
    """All that is young is looked at at once: the sets of a file's pages may have millions of indexes then."""
    ours = IndexSet()
    for index in range(0, 2 * NODE_INDEXES, 16):
        ours.add(index)
    nodes = gc.get_referents(*(part for part in gc.get_referents(ours) if isinstance(part, dict)))
    assert len(nodes) == 4  # Two nodes and their numbers.
    assert not any(map(gc.is_tracked, nodes))


def test_what_goes_while_a_range_is_looked_at_is_not_said_again() -> None:
    ours = IndexSet()
    for index in EDGES:
        ours.add(index)
    said = []
    for index in ours.between(0, 1 << 52):
        said.append(index)
        ours.clear()
    assert said == EDGES[:3]


def _set(indexes: IndexMap, index: int) -> None:
    indexes[index] = index


@pytest.mark.parametrize(
    ("indexes", "add", "remove"),
    [(IndexMap(), _set, IndexMap.pop), (IndexSet(), IndexSet.add, IndexSet.discard)],
    ids=["map", "set"],
)
def test_no_index_more_or_less_moves_all_others(
    indexes: IndexMap | IndexSet, add: Callable[..., object], remove: Callable[..., object]
) -> None:
    """It would take as long as there are pages, and all clients would wait."""
    tracemalloc.start()
    try:
        for do in (add, remove):
            assert max(_bytes_for(partial(do, indexes), first) for first in range(0, COUNT, AT_ONCE)) < MOST_BYTES
    finally:
        tracemalloc.stop()
    assert not indexes


def test_a_file_has_no_other_maps_and_sets_of_its_pages(machine: Machine) -> None:
    file, _ = machine.new_file(b"")
    plain = [name for name, value in vars(file.mapping).items() if type(value) in (dict, set)]
    plain += [name for name in ("_reclaim",) if type(getattr(file.mapping.host, name)) in (dict, set)]
    assert not plain


def _bytes_for(do: Callable[[int], object], first: int) -> int:
    """Return how much memory was needed for some indexes in a row."""
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    for index in range(first, first + AT_ONCE):
        do(index)
    return tracemalloc.get_traced_memory()[1] - before
