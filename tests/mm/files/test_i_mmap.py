"""Which VMAs map a page of a file: few of very many are looked at."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from kerneld.mm.files.i_mmap import IMmap
from kerneld.mm.intervals import FEW
from kerneld.mm.space import rmap_walk as rmap_walk_module
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.munmap import do_munmap
from kerneld.mm.space.rmap_walk import Mapped, rmap_walk
from kerneld.mm.space.vma import Vma
from shared.uapi.page import PAGE_SIZE
from tests.support.machine import BASE, READ, SHARED, Machine, load, mmap, page, pfn_of

PAGES = 40


@pytest.mark.parametrize("count", [FEW, 3 * FEW])
def test_it_names_what_overlaps(machine: Machine, mm: MmStruct, count: int) -> None:
    rng = random.Random(count)
    file, _ = machine.new_file(bytes(PAGES * PAGE_SIZE))
    for number in range(count):
        pgoff = rng.randrange(PAGES)
        mmap(mm, rng.randint(1, PAGES - pgoff), READ, SHARED, at=page(number * 50), file=file, pgoff=pgoff)
    for _round in range(20):
        first = rng.randrange(PAGES)
        last = rng.randint(first, PAGES + 5)
        expected = {v for v in mm.vmas if v.pgoff < last and first < v.pgoff + v.nr_pages}
        found = file.mapping.i_mmap.overlapping(first, last)
        assert set(found) == expected
        assert len(found) == len(expected)
        # Cut, split and gone: the bounds are those of now.
        do_munmap(mm, page(rng.randrange(count) * 50 + rng.randrange(PAGES)), 3 * PAGE_SIZE)


def test_a_search_between_two_changes_looks_at_few(
    machine: Machine, mm: MmStruct, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of a process removes one VMA after the other, and writes a page in between."""
    file, _ = machine.new_file(bytes(100 * PAGE_SIZE))
    for number in range(100):
        mmap(mm, 1, READ, SHARED, at=page(2 * number), file=file, pgoff=number)

    def walked(_self: IMmap) -> Iterator[Vma]:
        raise AssertionError("all VMAs were looked at")

    with monkeypatch.context() as patch:
        patch.setattr(IMmap, "__iter__", walked)
        for number in range(80):
            do_munmap(mm, page(2 * number), PAGE_SIZE)
            # Those that are left, but a few, are in buckets of one page.
            if len(file.mapping.i_mmap) > FEW // 2:
                assert [vma.pgoff for vma in file.mapping.i_mmap.overlapping(90, 92)] == [90, 91]
                assert not file.mapping.i_mmap.overlapping(number, number + 1)


def test_who_has_found_all_entries_looks_no_further(
    machine: Machine, mm: MmStruct, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, _ = machine.new_file(bytes(4 * PAGE_SIZE))
    for number in range(100):
        mmap(mm, 4, READ, SHARED, at=BASE + number * 8 * PAGE_SIZE, file=file)
    load(mm, BASE)
    walked: list[Vma] = []
    walk = rmap_walk_module._walk_vma

    def note(*args: object) -> object:
        walked.append(args[2])  # type: ignore[arg-type]
        return walk(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(rmap_walk_module, "_walk_vma", note)
    found: list[Mapped] = rmap_walk(machine.frames, np.array([pfn_of(mm, page(number)) for number in range(4)]))
    assert [mapped.vaddrs.tolist() for mapped in found] == [[page(number) for number in range(4)]]
    assert len(walked) == 1


def test_a_walk_lets_go_of_each_part_as_it_comes_to_the_next(machine: Machine, mm: MmStruct) -> None:
    """To let go of 240,000 VMAs at the end took 38 ms of one turn. The order is that in which they came."""
    file, _ = machine.new_file(bytes(PAGE_SIZE))
    for number in range(3 * FEW):
        mmap(mm, 1, READ, SHARED, at=page(2 * number), file=file)
    vmas = list(file.mapping.i_mmap)
    before = [sys.getrefcount(vmas[at]) for at in range(len(vmas))]
    seen = 0
    for part in file.mapping.i_mmap.overlapping_in_parts(0, 1, 10):
        assert part == vmas[seen : seen + 10]
        assert [sys.getrefcount(vmas[at]) for at in range(seen)] == before[:seen]
        seen += len(part)
    assert seen == len(vmas)
