"""kerneld writes a mapped file in a program's place: the file, its cached pages and the position agree at once."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from kerneld.mm.space import pace
from kerneld.mm.space.pace import drain
from kerneld.mm.space.writeback import do_msync
from shared.uapi.mman import Map, Ms
from shared.uapi.page import PAGE_SIZE
from tests.support.errors import fails
from tests.support.file_machine import RW, FileMachine

PAGES = 16


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "data"
    made.write_bytes(b"a" * 2 * PAGE_SIZE)
    return made


def _drain_of(call: Callable[..., Generator[None, None, object]], *args: object) -> object:
    return drain(call(*args))


def test_what_was_stored_beside_it_stays(machine: FileMachine, fd: int, path: Path) -> None:
    mm = machine.new_mm()
    base = machine.map_fd(mm, fd, 2 * PAGE_SIZE, prot=RW, flags=Map.SHARED)
    machine.store(mm, base + PAGE_SIZE - 8, b"stored")
    assert drain(machine.files.host_write(fd, b"XY" * 5, PAGE_SIZE - 4)) == 10
    assert machine.load(mm, base + PAGE_SIZE - 8, 8) == b"storXYXY"
    assert machine.load(mm, base + PAGE_SIZE, 8) == b"XYXYXYaa"
    do_msync(mm, base, 2 * PAGE_SIZE, Ms.SYNC)
    assert path.read_bytes()[PAGE_SIZE - 8 : PAGE_SIZE + 7] == b"storXYXYXYXYXYa"


def test_the_range_alone_is_read_again(machine: FileMachine, fd: int) -> None:
    mm = machine.new_mm()
    base = machine.map_fd(mm, fd, PAGE_SIZE, prot=RW, flags=Map.SHARED)
    machine.store(mm, base, b"stored")
    os.pwrite(fd, b"by another", 100)
    drain(machine.files.after_host_write(fd, 100, 10))
    assert machine.load(mm, base, 6) == b"stored"
    assert machine.load(mm, base + 100, 10) == b"by another"


def test_the_position_and_the_end(machine: FileMachine, fd: int, path: Path) -> None:
    mm = machine.new_mm()
    base = machine.map_fd(mm, fd, 4 * PAGE_SIZE, prot=RW, flags=Map.SHARED)
    os.lseek(fd, 5, os.SEEK_SET)
    assert drain(machine.files.host_write(fd, b"here", None)) == 4
    assert os.lseek(fd, 0, os.SEEK_CUR) == 9
    assert machine.load(mm, base + 4, 6) == b"aherea"
    appending = os.open(path, os.O_WRONLY | os.O_APPEND)
    assert drain(machine.files.host_write(appending, b"at the end", 0)) == 10
    os.close(appending)
    assert machine.load(mm, base + 2 * PAGE_SIZE, 11) == b"at the end\0"
    drain(machine.files.host_truncate(fd, PAGE_SIZE + 1))
    assert machine.load(mm, base + PAGE_SIZE, 2) == b"a\0"


def test_errors_are_those_of_the_calls(machine: FileMachine, fd: int, path: Path) -> None:
    assert fails(errno.EINVAL, _drain_of, machine.files.host_write, fd, b"x", 1 << 63)
    assert fails(errno.EINVAL, _drain_of, machine.files.host_truncate, fd, 1 << 63)
    reading = os.open(path, os.O_RDONLY)
    assert fails(errno.EBADF, _drain_of, machine.files.host_write, reading, b"x", 0)
    assert fails(errno.EINVAL, _drain_of, machine.files.host_truncate, reading, 0)
    os.close(reading)


def test_a_file_that_nothing_maps_is_only_written(machine: FileMachine, fd: int, path: Path) -> None:
    assert drain(machine.files.host_write(fd, b"alone", 3)) == 5
    drain(machine.files.host_truncate(fd, 10))
    assert path.read_bytes() == b"aaaaloneaa"


def test_others_are_served_while_it_is_read_again(
    machine: FileMachine, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two pieces no more than one page is read."""
    os.pwrite(fd, b"a" * PAGES * PAGE_SIZE, 0)
    mm = machine.new_mm()
    base = machine.map_fd(mm, fd, PAGES * PAGE_SIZE, prot=RW, flags=Map.SHARED)
    for number in range(PAGES):
        assert machine.load(mm, base + number * PAGE_SIZE, 1) == b"a"
    os.pwrite(fd, b"b" * PAGES * PAGE_SIZE, 0)
    monkeypatch.setattr(pace, "_PIECE_SECONDS", 0.0)
    seen = [0]
    for _ in machine.files.after_host_write(fd, 0, PAGES * PAGE_SIZE):
        seen.append(sum(machine.load(mm, base + number * PAGE_SIZE, 1) == b"b" for number in range(PAGES)))
    assert seen[: PAGES + 1] == list(range(PAGES + 1))
