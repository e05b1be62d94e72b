"""The page cache of a file that nothing maps any more: it stays, until the file changes or memory is short."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from kerneld.fs import kept_files
from kerneld.mm.frames.frames import PG_LRU
from kerneld.mm.reclaim.shrink import reclaim_pages
from shared.uapi.mman import Map
from shared.uapi.page import PAGE_SIZE
from tests.support.file_machine import RW, TEXT, FileMachine, unmap


@pytest.fixture
def all_are_old(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Have every file count as one that has not changed for long. The next write to `path` gives it another time."""
    monkeypatch.setattr(kept_files, "OLD_SECONDS", -3600)
    os.utime(path, (0, 0))


def used_once(machine: FileMachine, fd: int, **how: int) -> int:
    """Map a file, read its first page, and unmap it; return the number of frames that its cache still holds."""
    free = machine.frames.free_pages
    mm = machine.new_mm()
    addr = machine.map_fd(mm, fd, 3 * PAGE_SIZE, **how)
    assert machine.load(mm, addr, 4) == os.pread(fd, 4, 0)
    machine.exit(mm)
    assert len(machine.files) == 0
    return free - machine.frames.free_pages


@pytest.mark.usefixtures("all_are_old")
def test_the_pages_of_an_unchanged_file_serve_its_next_use(machine: FileMachine, fd: int) -> None:
    assert used_once(machine, fd) == 3
    (kept,) = machine.files.kept.mappings
    free = machine.frames.free_pages
    file = machine.files.open_fd(os.dup(fd))
    assert file.mapping is kept
    assert not machine.files.kept.mappings
    assert file.mapping.ensure_page(1) == kept.pages[1]
    assert machine.frames.free_pages == free
    machine.files.put_unused(file)
    assert machine.files.kept.mappings == [kept]


@pytest.mark.usefixtures("all_are_old")
def test_a_file_that_has_changed_is_read_again(machine: FileMachine, fd: int) -> None:
    used_once(machine, fd)
    os.pwrite(fd, b"new!", 0)
    assert used_once(machine, fd) == 0  # as many pages as before: the old ones have gone
    assert len(machine.files.kept.mappings) == 1


def test_a_file_that_has_just_changed_is_not_kept(machine: FileMachine, fd: int) -> None:
    assert used_once(machine, fd) == 0


@pytest.mark.usefixtures("all_are_old")
def test_a_file_that_changes_while_it_is_mapped_is_not_kept(machine: FileMachine, fd: int) -> None:
    mm = machine.new_mm()
    addr = machine.map_fd(mm, fd)
    assert machine.load(mm, addr, 4) == TEXT[:4]
    os.pwrite(fd, b"new!", 0)
    machine.exit(mm)
    assert not machine.files.kept.mappings


@pytest.mark.usefixtures("all_are_old")
def test_a_file_that_could_be_written_through_a_mapping_is_not_kept(machine: FileMachine, fd: int) -> None:
    assert used_once(machine, fd, prot=RW, flags=Map.SHARED) == 0


@pytest.mark.usefixtures("all_are_old")
def test_a_deleted_file_is_not_kept(machine: FileMachine, fd: int, path: Path) -> None:
    path.unlink()
    assert used_once(machine, fd) == 0


@pytest.mark.usefixtures("all_are_old")
def test_a_file_in_memory_is_not_kept(machine: FileMachine) -> None:
    fd = os.memfd_create("data")
    os.write(fd, TEXT)
    assert used_once(machine, fd) == 0
    os.close(fd)


@pytest.mark.usefixtures("all_are_old")
def test_reclaim_takes_kept_pages_and_the_next_fault_waits_for_them(machine: FileMachine, fd: int) -> None:
    used_once(machine, fd)
    (kept,) = machine.files.kept.mappings
    pfns = np.array(list(kept.pages.values()), dtype=np.int64)
    assert machine.frames.has(pfns, PG_LRU).all()
    assert reclaim_pages(machine.frames, pfns) == 3
    assert not kept.pages
    file = machine.files.open_fd(os.dup(fd))
    assert file.mapping.must_read(0)
    machine.files.put_unused(file)


@pytest.mark.usefixtures("all_are_old")
def test_the_file_that_was_used_longest_ago_goes_when_there_are_too_many(
    machine: FileMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_files, "MOST_KEPT", 2)
    fds = []
    for number in range(3):
        (tmp_path / str(number)).write_bytes(TEXT)
        fds.append(os.open(tmp_path / str(number), os.O_RDONLY))
    for fd in (*fds[:2], fds[0], fds[2]):
        used_once(machine, fd)
    keys = [(os.fstat(fd).st_dev, os.fstat(fd).st_ino) for fd in fds]
    taken = [machine.files.kept.take(key, kept_files.Stamp.of(os.fstat(fd))) for key, fd in zip(keys, fds, strict=True)]
    assert [mapping is not None for mapping in taken] == [True, False, True]
    for fd, mapping in zip(fds, taken, strict=True):
        os.close(fd)
        if mapping is not None:
            mapping.evict()


@pytest.mark.usefixtures("all_are_old")
def test_all_can_be_dropped(machine: FileMachine, fd: int) -> None:
    free = machine.frames.free_pages
    used_once(machine, fd)
    mm = machine.new_mm()
    addr = machine.map_fd(mm, fd)
    unmap(mm, addr)
    machine.files.kept.drop_all()
    machine.exit(mm)
    assert machine.frames.free_pages == free
