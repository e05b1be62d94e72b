"""The end of an address space: its small VMAs lose their entries together, and no frame is let go of twice."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kerneld.mm.space import dying
from kerneld.mm.space.locked_pages import zap_vma_range
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.vma import Vma
from shared.uapi.page import PAGE_SIZE, Vaddr
from tests.support.machine import ANON, BASE, PRIVATE, RW, SHARED, Machine, checked, load, mmap, page, store


@pytest.fixture
def machine() -> Iterator[Machine]:
    yield from checked(Machine())


@pytest.fixture
def zapped(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The ranges whose entries have been cleared: first page from BASE, pages."""
    ranges: list[tuple[int, int]] = []
    zap = zap_vma_range

    def note(mm: MmStruct, vma: Vma, start: Vaddr, end: Vaddr) -> None:
        ranges.append(((start - BASE) // PAGE_SIZE, (end - start) // PAGE_SIZE))
        zap(mm, vma, start, end)

    monkeypatch.setattr(dying, "zap_vma_range", note)
    return ranges


def test_private_mappings_of_files_go_with_their_neighbours(machine: Machine, zapped: list[tuple[int, int]]) -> None:
    mm = machine.new_mm()
    library, _ = machine.new_file(b"x" * 8 * PAGE_SIZE)
    program, _ = machine.new_file(b"x" * 8 * PAGE_SIZE)
    mmap(mm, 4, flags=PRIVATE, at=page(0), file=library)
    mmap(mm, 4, flags=PRIVATE, at=page(5), file=library, pgoff=4)
    mmap(mm, 2, flags=ANON, at=page(9))
    mmap(mm, 4, flags=PRIVATE, at=page(12), file=program)
    for number in (0, 6, 12):
        load(mm, page(number))
    store(mm, page(9), b"x")
    machine.exit(mm)
    assert zapped == [(0, 16)]


def test_a_page_of_a_file_that_is_mapped_twice_goes_in_two_parts(
    machine: Machine, zapped: list[tuple[int, int]]
) -> None:
    """As the page in which one segment of an ELF file ends and the next begins."""
    mm = machine.new_mm()
    file, _ = machine.new_file(b"x" * 8 * PAGE_SIZE)
    mmap(mm, 4, flags=PRIVATE, at=page(0), file=file)
    mmap(mm, 4, flags=PRIVATE, at=page(4), file=file, pgoff=3)
    load(mm, page(3))
    load(mm, page(4))
    machine.exit(mm)
    assert zapped == [(0, 4), (4, 4)]


def test_a_shared_mapping_of_a_file_goes_first(machine: Machine, zapped: list[tuple[int, int]]) -> None:
    mm = machine.new_mm()
    file, backing = machine.new_file(bytes(2 * PAGE_SIZE))
    mmap(mm, 1, at=page(0))
    mmap(mm, 2, RW, SHARED, at=page(1), file=file)
    mmap(mm, 1, at=page(3))
    for number in range(4):
        store(mm, page(number), b"x")
    machine.exit(mm)
    assert zapped == [(1, 2), (0, 4)]
    assert bytes(backing.data[:1]) == b"x"
