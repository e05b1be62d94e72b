"""The ordered map of VMAs against a sorted list, with chunks so small that every edge between them is met."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kerneld.errors import KernelBug
from kerneld.mm.space import vma_tree
from kerneld.mm.space.vma import STACK_GUARD_GAP_BYTES, Vma, vm_start_gap
from kerneld.mm.space.vma_tree import VmaTree
from kerneld.mm.vm_flags import VM_GROWSDOWN
from shared.uapi.page import PAGE_SIZE

PAGES = 64
"""Addresses of the model: pages 0 to 63, each GAP bytes long so that a guard gap covers just one."""
GAP = STACK_GUARD_GAP_BYTES


class Model:
    """The tree, and beside it a plain sorted list."""

    def __init__(self) -> None:
        self.tree = VmaTree()
        self.vmas: list[Vma] = []

    def add(self, first: int, count: int, grows: bool) -> None:
        start, end = first * GAP, min(first + count, PAGES) * GAP
        if any(vma.start < end and start < vma.end for vma in self.vmas):
            return
        vma = Vma(start, end, VM_GROWSDOWN if grows else 0, 0)
        self.tree.insert(vma)
        self.vmas = sorted([*self.vmas, vma], key=lambda each: each.start)

    def remove(self, pick: int) -> None:
        if self.vmas:
            self.tree.remove(self.vmas.pop(pick % len(self.vmas)))

    def move(self, pick: int, low: int, high: int) -> None:
        if not self.vmas:
            return
        place = pick % len(self.vmas)
        vma = self.vmas[place]
        floor = self.vmas[place - 1].end if place else 0
        ceiling = self.vmas[place + 1].start if place + 1 < len(self.vmas) else PAGES * GAP
        start = min(max(floor, vma.start + low * GAP), vma.end - GAP)
        end = max(min(ceiling, vma.end + high * GAP), start + GAP)
        self.tree.move(vma, start, end)

    def check(self) -> None:
        self.tree.check()
        assert list(self.tree) == self.vmas
        assert list(reversed(self.tree)) == self.vmas[::-1]
        assert len(self.tree) == len(self.vmas)

    def check_lookups(self) -> None:
        for vaddr in range(0, (PAGES + 1) * GAP, GAP // 2):
            above = [vma for vma in self.vmas if vaddr < vma.end]
            assert self.tree.find(vaddr) is (above[0] if above else None)
            covering = [vma for vma in self.vmas if vma.start <= vaddr < vma.end]
            assert self.tree.lookup(vaddr) is (covering[0] if covering else None)
            below = [vma for vma in self.vmas if vma.start < vaddr]
            assert self.tree.preceding(vaddr) is (below[-1] if below else None)
            if not covering:
                assert self.tree.around(vaddr) == (below[-1] if below else None, above[0] if above else None)
        around = [None, *self.vmas, None]
        for place, vma in enumerate(self.vmas):
            assert self.tree.previous(vma) is around[place]
            assert self.tree.following(vma) is around[place + 2]
            assert self.tree.neighbours(vma) == (around[place], around[place + 2])

    def check_range(self, low: int, high: int) -> None:
        start, end = low * GAP + PAGE_SIZE, high * GAP - PAGE_SIZE
        expected = [vma for vma in self.vmas if vma.start < end and start < vma.end]
        assert list(self.tree.overlapping(start, end)) == expected
        assert self.tree.find_intersection(start, end) is (expected[0] if expected else None)

    def check_gaps(self, low: int, high: int, length: int) -> None:
        taken = set()
        for vma in self.vmas:
            taken |= set(range(vm_start_gap(vma) // GAP, vma.end // GAP))
        fits = [at for at in range(low, high - length + 1) if not taken & set(range(at, at + length))]
        found = self.tree.find_gap_below(low * GAP, high * GAP, length * GAP)
        assert found == (fits[-1] * GAP if fits else None)
        found = self.tree.find_gap_above(low * GAP, high * GAP, length * GAP)
        assert found == (fits[0] * GAP if fits else None)


CHANGE = st.one_of(
    st.tuples(st.just("add"), st.integers(0, PAGES - 1), st.integers(1, 4), st.sampled_from([False, False, True])),
    st.tuples(st.just("remove"), st.integers(0, PAGES)),
    st.tuples(st.just("move"), st.integers(0, PAGES), st.integers(-3, 3), st.integers(-3, 3)),
)
PAGE = st.integers(0, PAGES)


def test_a_vma_reaches_over_the_place_where_the_next_chunk_began(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first VMA of a chunk goes; the last one of the chunk before grows over its place, or a new one takes it."""
    monkeypatch.setattr(vma_tree, "CHUNK", 1)
    for grown in (True, False):
        model = Model()
        for page in (0, 2, 4, 6):
            model.add(page, 1, grows=False)
        model.remove(2)
        if grown:
            model.move(1, 0, 3)
        else:
            model.add(3, 3, grows=False)
        model.check()
        model.check_lookups()


@settings(max_examples=200)
@given(
    chunk=st.integers(1, 4),
    changes=st.lists(CHANGE, max_size=60),
    ranges=st.lists(st.tuples(PAGE, PAGE, st.integers(1, 6)), min_size=8, max_size=8),
)
def test_against_a_sorted_list(
    chunk: int, changes: list[tuple[str, int, int, int]], ranges: list[tuple[int, int, int]]
) -> None:
    model = Model()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vma_tree, "CHUNK", chunk)
        for number, (name, *arguments) in enumerate(changes):
            getattr(model, name)(*arguments)
            model.check()
            low, high, length = ranges[number % len(ranges)]
            if low < high:
                model.check_gaps(low, high, length)
        model.check_lookups()
        for low, high, length in ranges:
            if low < high:
                model.check_range(low, high)
                model.check_gaps(low, high, length)


def test_many_vmas_at_their_real_chunk_size() -> None:
    tree = VmaTree()
    vmas = [Vma(at * 3 * PAGE_SIZE, (at * 3 + 1) * PAGE_SIZE, 0, 0) for at in range(5000)]
    for vma in vmas[::2] + vmas[1::2]:
        tree.insert(vma)
    tree.check()
    assert list(tree) == vmas
    top = vmas[-1].end
    assert tree.find_gap_below(0, top, 3 * PAGE_SIZE) is None
    tree.remove(vmas[700])
    assert tree.find_gap_below(0, top, 3 * PAGE_SIZE) == vmas[701].start - 3 * PAGE_SIZE
    assert tree.find_gap_above(0, top, 5 * PAGE_SIZE) == vmas[699].end
    for vma in vmas[:700] + vmas[701:]:
        tree.remove(vma)
    tree.check()
    assert len(tree) == 0
    assert tree.find_gap_below(0, top, PAGE_SIZE) == top - PAGE_SIZE


def test_the_last_of_a_chunk_moves_up_to_where_the_next_chunk_began(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vma_tree, "CHUNK", 2)
    tree = VmaTree()
    vmas = [Vma(at * 2 * GAP, (at * 2 + 1) * GAP, 0, 0) for at in range(6)]
    for vma in vmas:
        tree.insert(vma)
    last, gone = vmas[1:3]
    tree.remove(gone)
    tree.move(last, last.start, gone.end)
    tree.move(last, gone.start, gone.end)
    tree.check()
    assert tree.lookup(gone.start) is last
    tree.remove(last)
    assert list(tree) == [vmas[0], *vmas[3:]]


def test_a_broken_tree_is_noticed() -> None:
    tree = VmaTree()
    vma = Vma(PAGE_SIZE, 2 * PAGE_SIZE, 0, 0)
    tree.insert(vma)
    vma.start = 0
    with pytest.raises(KernelBug, match="start elsewhere than noted"):
        tree.check()
