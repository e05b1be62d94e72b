"""The buddy allocator against a set of free frames, and against what Linux's rules say of its blocks."""

from __future__ import annotations

from array import array
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kerneld.errors import KernelBug
from kerneld.mm.frames.buddy import MAX_ORDER, PCP_BATCH, PCP_HIGH, Buddy, OutOfFrames
from tests.support.steps import steps_of

FIRST = 2
LOW = 1024
"""First frame of a machine whose memory is one block of the largest order."""


def blocks(buddy: Buddy) -> list[tuple[int, int]]:
    """Return (first frame, order) of each free block."""
    heads = np.flatnonzero(buddy.head_order).tolist()
    return [(head, int(buddy.head_order[head]) - 1) for head in heads]


def test_a_fresh_machine_is_cut_into_the_largest_blocks_that_fit() -> None:
    buddy = Buddy(2048 + 100, FIRST)
    assert blocks(buddy) == [
        *((1 << order, order) for order in range(1, 10)),
        (1024, 10),
        (2048, 6),
        (2112, 5),
        (2144, 2),
    ]
    buddy.check()


def test_a_block_is_split_downwards_and_merged_again() -> None:
    buddy = Buddy(2 * LOW, LOW)
    assert buddy.alloc_block(3) == LOW
    assert blocks(buddy) == [(LOW + (1 << order), order) for order in range(3, 10)]
    assert buddy.alloc_block(3) == LOW + 8
    buddy.free_block(LOW, 3)
    assert (LOW, 3) in blocks(buddy)
    buddy.check()
    buddy.free_block(LOW + 8, 3)
    assert blocks(buddy) == [(LOW, 10)]
    buddy.check()


def test_the_best_fit_is_taken_first() -> None:
    buddy = Buddy(2 * LOW, LOW)
    small = buddy.alloc_block(0)
    buddy.alloc_block(0)
    buddy.free_block(small, 0)
    assert buddy.alloc_block(0) == small


def test_a_frame_out_of_memory_is_no_buddy() -> None:
    buddy = Buddy(2 * LOW + 3, LOW)
    pfns = buddy.alloc_many(LOW + 3)
    buddy.free_many(pfns)
    assert blocks(buddy) == [(LOW, 10), (2 * LOW, 1), (2 * LOW + 2, 0)]
    buddy.check()


def test_all_or_none() -> None:
    buddy = Buddy(128, FIRST)
    before = blocks(buddy)
    with pytest.raises(OutOfFrames):
        buddy.alloc_many(127)
    with pytest.raises(OutOfFrames):
        buddy.alloc_block(7)
    assert blocks(buddy) == before
    assert sorted(buddy.alloc_many(126).tolist()) == list(range(FIRST, 128))
    with pytest.raises(OutOfFrames):
        buddy.alloc_one()
    with pytest.raises(OutOfFrames):
        buddy.alloc_block(0)
    assert buddy.nr_free == 0


def test_per_cpu_frames_are_drained_for_a_block() -> None:
    buddy = Buddy(512, 256)
    pfns = [buddy.alloc_one() for _ in range(256)]
    for pfn in pfns:
        buddy.free_one(pfn)
    assert len(buddy.pcp) == 256
    assert buddy.nr_free == 256
    assert buddy.alloc_block(8) == 256
    buddy.check()


def test_the_frame_freed_last_is_handed_out_first_and_the_list_is_bounded() -> None:
    buddy = Buddy(4096, FIRST)
    pfns = [buddy.alloc_one() for _ in range(PCP_HIGH + 10)]
    for pfn in pfns:
        buddy.free_one(pfn)
        assert len(buddy.pcp) <= PCP_HIGH
    buddy.check()
    assert buddy.alloc_one() == pfns[-1]
    assert buddy.nr_free == 4096 - FIRST - 1


def test_one_batch_comes_in_order_of_address() -> None:
    buddy = Buddy(4096, FIRST)
    pfns = [buddy.alloc_one() for _ in range(PCP_BATCH)]
    assert pfns[:32] == list(range(pfns[0], pfns[0] + 32))


@pytest.mark.parametrize("count", [17, 100])
def test_freeing_twice_is_a_bug(count: int) -> None:
    buddy = Buddy(2 * LOW, LOW)
    pfns = buddy.alloc_many(count)
    buddy.free_many(pfns)
    with pytest.raises(KernelBug):
        buddy.free_many(pfns)


def test_freeing_one_frame_twice_at_once_is_a_bug() -> None:
    buddy = Buddy(2 * LOW, LOW)
    pfns = buddy.alloc_many(40)
    with pytest.raises(KernelBug):
        buddy.free_many(np.concatenate([pfns, pfns[:1]]))


@pytest.mark.parametrize("count", [3, 16, 40])
def test_free_lists_do_not_grow_without_end(count: int) -> None:
    buddy = Buddy(2 * LOW, LOW)
    for _ in range(3000):
        buddy.free_many(buddy.alloc_many(count))
    assert sum(map(len, buddy._lists)) < 1100 * (MAX_ORDER + 1)
    assert blocks(buddy) == [(LOW, 10)]
    buddy.check()


CALL = st.one_of(
    st.tuples(st.just("one"), st.just(0)),
    st.tuples(st.just("many"), st.integers(1, 300)),
    st.tuples(st.just("block"), st.integers(0, MAX_ORDER)),
    st.tuples(st.just("free_one"), st.integers(0, 1 << 20)),
    st.tuples(st.just("free_many"), st.integers(0, 1 << 20)),
    st.tuples(st.just("free_block"), st.integers(0, 1 << 20)),
    st.tuples(st.just("drain"), st.integers(0, PCP_HIGH)),
    st.tuples(st.just("named"), st.integers(0, 1 << 20)),
)


class Model:
    """What is allocated, as single frames and as blocks; everything else must be free."""

    def __init__(self, nr_frames: int) -> None:
        self.buddy = Buddy(nr_frames, FIRST)
        self.free = set(range(FIRST, nr_frames))
        self.singles: list[int] = []
        self.blocks: list[tuple[int, int]] = []

    def take(self, pfns: list[int]) -> None:
        assert len(set(pfns)) == len(pfns)
        assert self.free.issuperset(pfns)
        self.free -= set(pfns)

    def one(self, _: int) -> None:
        if not self.free:
            with pytest.raises(OutOfFrames):
                self.buddy.alloc_one()
            return
        pfn = self.buddy.alloc_one()
        self.take([pfn])
        self.singles.append(pfn)

    def many(self, count: int) -> None:
        if count > len(self.free):
            with pytest.raises(OutOfFrames):
                self.buddy.alloc_many(count)
            return
        pfns = self.buddy.alloc_many(count).tolist()
        assert len(pfns) == count
        self.take(pfns)
        self.singles += pfns

    def named(self, pick: int) -> None:
        """Take frames by their numbers: some of the free ones, near each other or not."""
        chosen = sorted(self.free)[pick % 50 :: pick % 7 + 1][: pick % 90]
        self.buddy.take(np.array(chosen, dtype=np.int64))
        self.take(chosen)
        self.singles += chosen

    def block(self, order: int) -> None:
        size = 1 << order
        fits = any(self.free.issuperset(range(pfn, pfn + size)) for pfn in range(0, 1 << 12, size))
        try:
            pfn = self.buddy.alloc_block(order)
        except OutOfFrames:
            assert not fits
            return
        assert pfn % size == 0
        self.take(list(range(pfn, pfn + size)))
        self.blocks.append((pfn, order))

    def free_one(self, pick: int) -> None:
        if self.singles:
            pfn = self.singles.pop(pick % len(self.singles))
            self.buddy.free_one(pfn)
            self.free.add(pfn)

    def free_many(self, pick: int) -> None:
        step = pick % 7 + 1
        pfns = self.singles[::step]
        del self.singles[::step]
        self.buddy.free_many(np.array(pfns[::-1] if pick & 8 else pfns, dtype=np.int64))
        self.free |= set(pfns)

    def free_block(self, pick: int) -> None:
        if self.blocks:
            pfn, order = self.blocks.pop(pick % len(self.blocks))
            self.buddy.free_block(pfn, order)
            self.free |= set(range(pfn, pfn + (1 << order)))

    def drain(self, count: int) -> None:
        self.buddy.drain_pcp(count)


@settings(max_examples=50)
@given(stale=st.lists(st.integers(0, 63), max_size=300))
def test_what_is_left_of_a_free_list_is_in_its_order(stale: list[int]) -> None:
    """Of entries of one frame the lowest stays: it is allocated last."""
    buddy = Buddy(64, FIRST)
    buddy.head_order[:] = 0
    buddy.head_order[8:40:3] = 1
    buddy._lists[0] = array("q", stale)
    buddy._compact(0)
    assert buddy._lists[0].tolist() == [pfn for pfn in dict.fromkeys(stale) if pfn in range(8, 40, 3)]


def test_a_long_free_list_is_cleaned_without_a_loop() -> None:
    """Others wait meanwhile. As many steps of the interpreter for ten entries as for a million."""
    steps = []
    for length in (10, 1_000_000):
        buddy = Buddy(1 << 21, FIRST)
        buddy._lists[0] = array("q", range(length))
        steps.append(steps_of(partial(buddy._compact, 0)))
    assert steps[0] == steps[1] < 40


@settings(max_examples=150)
@given(nr_frames=st.integers(3, 2500), calls=st.lists(CALL, max_size=40))
def test_against_a_set_of_frames(nr_frames: int, calls: list[tuple[str, int]]) -> None:
    model = Model(nr_frames)
    for name, argument in calls:
        getattr(model, name)(argument)
        model.buddy.check()
        assert model.buddy.nr_free == len(model.free)
        is_free = model.buddy.is_free()
        assert set(np.flatnonzero(is_free).tolist()) == model.free
        parts = [model.buddy.is_free(low, low + 1024) for low in range(0, nr_frames, 1024)]
        assert np.array_equal(np.concatenate(parts), is_free)
    for pfn, order in model.blocks:
        model.buddy.free_block(pfn, order)
    model.buddy.free_many(np.array(model.singles, dtype=np.int64))
    model.buddy.drain_pcp(len(model.buddy.pcp))
    assert blocks(model.buddy) == blocks(Buddy(nr_frames, FIRST))
