"""Python's collector in the daemon: it looks at few objects at a time, however many there are."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from kerneld.server.collector import YOUNG_COLLECTIONS, YOUNG_OBJECTS, collect_old, spare_collector

OBJECTS = 60_000


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The objects that each collection has looked at."""
    seen: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            seen.append(sum(len(gc.get_objects(each)) for each in range(info["generation"] + 1)))

    before = gc.get_threshold()
    monkeypatch.setattr(gc, "freeze", lambda: None)
    gc.collect()
    spare_collector()
    gc.callbacks.append(note)
    yield seen
    gc.callbacks.remove(note)
    gc.set_threshold(*before)


class Node:
    """An object as a VMA is one."""


def test_it_looks_at_few_at_a_time(looked_at: list[int]) -> None:
    nodes = [Node() for _ in range(OBJECTS)]
    assert len(looked_at) >= OBJECTS // YOUNG_OBJECTS // 2
    assert max(looked_at) < (YOUNG_COLLECTIONS + 3) * YOUNG_OBJECTS
    del nodes


def test_the_old_ones_wait_until_there_are_many(looked_at: list[int]) -> None:
    collect_old()
    assert not [seen for seen in looked_at if seen > OBJECTS // 2]
    nodes = [Node() for _ in range(OBJECTS * 2)]
    collect_old()
    assert looked_at[-1] >= len(nodes)
