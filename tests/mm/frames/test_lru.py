"""Callers that look at every frame of a large machine: what they find, and that they copy no more than a part of it."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import pytest

from kerneld.fs.proc_vmstat import count_pages
from kerneld.hw.ram import Ram
from kerneld.mm.frames.frames import PG_ACTIVE, PG_ANON, PG_LRU, PG_SWAPBACKED, PG_UNEVICTABLE, Frames
from kerneld.mm.frames.lru import Lists, LruList, lru_sizes

NR_FRAMES = 1 << 20
NR_ON_LIST = 500_000
COPY_BYTES = NR_FRAMES // 4 * np.dtype(np.uint32).itemsize
"""A copy of the flags of a quarter of the frames."""


@pytest.fixture
def frames() -> Iterator[Frames]:
    """Yield the frames of 4 GiB. About half of them are on the inactive list of anonymous memory, in a random order."""
    ram = Ram(NR_FRAMES << 12)
    frames = Frames(ram)
    random = np.random.default_rng(13)
    on_list = np.sort(random.choice(np.arange(10, NR_FRAMES), NR_ON_LIST, replace=False))
    frames.flags[on_list] = PG_LRU | PG_SWAPBACKED | PG_ANON
    frames.refcount[on_list] = frames.mapcount[on_list] = 1
    frames.lru[on_list] = random.permutation(NR_ON_LIST) + 1
    frames.lru_clock = NR_ON_LIST
    yield frames
    ram.close()


def test_frames_of_every_part_are_counted(frames: Frames) -> None:
    assert next(frames.parts()).stop < NR_FRAMES
    assert lru_sizes(frames) == [NR_ON_LIST, 0, 0, 0, 0]
    frames.flags[NR_FRAMES - 1] = PG_LRU | PG_ACTIVE
    frames.flags[1] = PG_LRU | PG_UNEVICTABLE
    on_list = NR_ON_LIST - int(frames.lru[NR_FRAMES - 1] > 0)
    assert lru_sizes(frames) == count_pages(frames).lists == [on_list, 0, 0, 1, 1]
    assert count_pages(frames).anon == on_list


def test_the_oldest_frames_of_a_long_list_are_taken_first(frames: Frames) -> None:
    lists = Lists(frames)
    taken = np.concatenate([lists.isolate(LruList.INACTIVE_ANON, 6_000) for _ in range(5)])
    assert frames.lru[taken].tolist() == list(range(1, 30_001))


@pytest.mark.parametrize("residue", [0, 1])
def test_lists_that_alternate_are_not_sorted_whole(
    frames: Frames, residue: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sample of every so many frames must see both: huge pages, say, make patterns in memory."""
    frames.flags[10::2] |= PG_ACTIVE
    lengths: list[int] = []
    argsort = np.argsort

    def noted(stamps: npt.NDArray[np.uint32]) -> npt.NDArray[np.int64]:
        lengths.append(len(stamps))
        order: npt.NDArray[np.int64] = argsort(stamps)
        return order

    monkeypatch.setattr(np, "argsort", noted)
    taken = Lists(frames).isolate((LruList.ACTIVE_ANON, LruList.INACTIVE_ANON)[residue], 100)
    everybody = np.flatnonzero((frames.lru > 0) & ((frames.flags & PG_ACTIVE != 0) != residue))
    # The pages taken have a reference more, and are on no list.
    assert set(frames.lru[taken].tolist()) == set(np.sort(frames.lru[everybody])[:100].tolist())
    assert lengths[0] < NR_ON_LIST // 8


@pytest.mark.parametrize(
    "look",
    [lru_sizes, count_pages, lambda frames: Lists(frames).isolate(LruList.INACTIVE_ANON, 32)],
    ids=["lru_sizes", "count_pages", "isolate"],
)
def test_no_copy_is_as_large_as_the_machine(frames: Frames, look: Callable[[Frames], object]) -> None:
    tracemalloc.start()
    try:
        look(frames)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < COPY_BYTES
