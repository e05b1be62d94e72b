"""The first store to a hole of a mapped file: the file system gives it blocks then, or the store is SIGBUS."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from kerneld.fs import holes as holes_module
from kerneld.fs.holes import Holes
from kerneld.mm.fault.fault import handle_mm_fault
from kerneld.mm.fault.vm_fault import VM_FAULT_SIGBUS
from shared.uapi.mman import Map
from shared.uapi.page import PAGE_SIZE
from tests.support.file_machine import RW, FileMachine
from tests.support.machine import vma_at
from tests.support.small_disk import small_disk

BASE = 0x10_0000_0000
SHARED = (Map.SHARED | Map.FIXED).value


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The ranges for which a file system is asked for blocks."""
    ranges: list[tuple[int, int]] = []
    monkeypatch.setattr(holes_module, "allocate", lambda _fd, offset, length: ranges.append((offset, length)))
    return ranges


def sparse(path: Path, pages: int, data: tuple[int, ...] = ()) -> int:
    """Return a descriptor of a new file of holes, and pages of data."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, pages * PAGE_SIZE)
    for index in data:
        os.pwrite(fd, b"d" * PAGE_SIZE, index * PAGE_SIZE)
    return fd


def fill(path: Path) -> None:
    """Write to a file until its file system is full."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    with contextlib.suppress(OSError):
        while os.write(fd, bytes(PAGE_SIZE)):
            pass
    os.close(fd)


def test_each_hole_is_asked_for_once_and_data_never(tmp_path: Path, asked: list[tuple[int, int]]) -> None:
    fd = sparse(tmp_path / "file", 4, data=(1,))
    os.ftruncate(fd, 3 * PAGE_SIZE + 100)
    holes = Holes()
    for index in (0, 1, 3, 0, 3):
        if holes.may_have(index):
            holes.fill(index, fd, fd, 3 * PAGE_SIZE + 100)
    assert asked == [(0, PAGE_SIZE), (3 * PAGE_SIZE, 100)]
    os.close(fd)


def test_what_becomes_a_hole_is_asked_for_again(tmp_path: Path, asked: list[tuple[int, int]]) -> None:
    fd = sparse(tmp_path / "file", 2, data=(0, 1))
    holes = Holes()
    holes.fill(0, fd, fd, 2 * PAGE_SIZE)
    assert not holes.may_have(1)
    holes.add(1, 3)
    holes.cut(2)
    assert [holes.may_have(index) for index in range(3)] == [False, True, False]
    os.close(fd)


def test_memory_files_have_room(asked: list[tuple[int, int]]) -> None:
    fd = os.memfd_create("memory")
    os.ftruncate(fd, PAGE_SIZE)
    holes = Holes()
    holes.fill(0, fd, fd, PAGE_SIZE)
    assert (asked, holes.may_have(0)) == ([], False)
    os.close(fd)


@pytest.mark.parametrize("read_first", [False, True])
def test_a_store_takes_the_blocks_at_once(machine: FileMachine, tmp_path: Path, read_first: bool) -> None:
    fd = sparse(tmp_path / "file", 4)
    try:
        os.posix_fallocate(fd, 0, 1)
    except OSError as error:
        pytest.skip(f"the file system of {tmp_path} gives no blocks in advance: {error.strerror}")
    before = os.fstat(fd).st_blocks
    mm = machine.new_mm()
    machine.map_fd(mm, fd, 4 * PAGE_SIZE, addr=BASE, prot=RW, flags=SHARED)
    if read_first:
        machine.load(mm, BASE + 2 * PAGE_SIZE, 1)
    assert os.fstat(fd).st_blocks == before
    machine.store(mm, BASE + 2 * PAGE_SIZE, b"x")
    assert os.fstat(fd).st_blocks >= before + PAGE_SIZE // 512
    os.close(fd)


def test_a_full_file_system(machine: FileMachine, tmp_path: Path) -> None:
    with small_disk(tmp_path) as disk:
        fd = sparse(disk / "file", 4, data=(0,))
        fill(disk / "filler")
        mm = machine.new_mm()
        machine.map_fd(mm, fd, 4 * PAGE_SIZE, addr=BASE, prot=RW, flags=SHARED)
        machine.store(mm, BASE, b"x")
        vma = vma_at(mm, BASE)
        assert handle_mm_fault(mm, vma, BASE + PAGE_SIZE, True) == VM_FAULT_SIGBUS
        (disk / "filler").unlink()
        machine.store(mm, BASE + PAGE_SIZE, b"x")
        machine.exit(mm)
        os.close(fd)
