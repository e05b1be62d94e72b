"""The split of a huge page that a large family shares: of most address spaces it does not look at the entries."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from kerneld.mm.calls.madvise import do_madvise
from kerneld.mm.calls.mlock import do_mlock
from kerneld.mm.frames.frames import PG_UNEVICTABLE
from kerneld.mm.frames.huge_frames import PG_LARGE
from kerneld.mm.space import rmap_walk
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.munmap import do_munmap
from kerneld.mm.space.vma import Vma
from kerneld.mm.vm_flags import VM_LOCKED
from shared.uapi.mman import Madv
from shared.uapi.page import PAGE_SIZE, PMD_SIZE
from tests.support.huge_machine import HUGE, HugeMachine, frames_of, huge, marked
from tests.support.machine import BASE, checked, page

CHILDREN = 6


@pytest.fixture
def machine() -> Iterator[HugeMachine]:
    yield from checked(HugeMachine())


def test_a_family_whose_entries_are_small(machine: HugeMachine, mm: MmStruct, monkeypatch: pytest.MonkeyPatch) -> None:
    """One is dirty, so all pages will be; of the others only one that has locked memory is looked at."""
    marked(mm, HUGE)
    frames = np.array(frames_of(mm, BASE, huge(1)))
    first = machine.fork(mm)
    do_munmap(first, BASE, PAGE_SIZE)
    children = [first, *(machine.fork(first) for _ in range(CHILDREN - 1))]
    do_mlock(children[-1], page(1), 4 * PAGE_SIZE, VM_LOCKED, privileged=True)
    whole = machine.fork(children[0])
    looked_at: list[MmStruct | None] = []
    walk_vma = rmap_walk._walk_vma

    def counted(frames: object, pfns: object, vma: Vma, *where: object) -> Iterator[rmap_walk.Mapped]:
        looked_at.append(vma.vm_mm)
        return walk_vma(frames, pfns, vma, *where)  # type: ignore[arg-type]

    monkeypatch.setattr(rmap_walk, "_walk_vma", counted)
    do_madvise(mm, BASE, PMD_SIZE // 2, Madv.COLD)
    assert not machine.frames.has(frames, PG_LARGE).any()
    assert len(looked_at) <= 3
    assert children[-1] in looked_at
    assert machine.frames.has(frames, PG_UNEVICTABLE)[:6].tolist() == [False, True, True, True, True, False]
    assert whole.rss.resident_pages == HUGE - 1
