"""Closing descriptors whose close takes long: another thread does it."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from kerneld.fs import fput as closing
from kerneld.fs.fput import delayed, fput
from kerneld.mm.space.munmap import do_munmap
from tests.support.file_machine import FileMachine

SIZE = 1 << 20


@pytest.fixture
def closers(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """The thread that closed each descriptor; a file of a MiB is large."""
    closed: dict[int, int] = {}
    close = os.close

    def noted(fd: int) -> None:
        closed[fd] = threading.get_ident()
        close(fd)

    monkeypatch.setattr(os, "close", noted)
    monkeypatch.setattr(closing, "LONG_BYTES", SIZE)
    return closed


def memfd(size: int) -> int:
    fd = os.memfd_create("large")
    os.posix_fallocate(fd, 0, size)
    return fd


def is_open(fd: int) -> bool:
    return Path(f"/proc/self/fd/{fd}").is_symlink()


def test_another_thread_closes_a_large_file_without_a_name(closers: dict[int, int]) -> None:
    fd = memfd(SIZE)
    fput(fd)
    delayed.join()
    assert closers[fd] != threading.get_ident()
    assert not is_open(fd)


def test_holes_count_too(closers: dict[int, int]) -> None:
    """What was read of a hole is in the host's cache, and occupies no block."""
    fd = os.open("/var/tmp", os.O_TMPFILE | os.O_RDWR, 0o600)
    os.ftruncate(fd, SIZE)
    assert os.pread(fd, SIZE, 0) == bytes(SIZE)
    fput(fd)
    delayed.join()
    assert closers[fd] != threading.get_ident()


def test_a_small_file_and_one_with_a_name_are_closed_at_once(closers: dict[int, int], tmp_path: Path) -> None:
    named = os.open(tmp_path / "named", os.O_RDWR | os.O_CREAT)
    os.posix_fallocate(named, 0, SIZE)
    small = memfd(SIZE // 2)
    for fd in (named, small):
        fput(fd)
        assert not is_open(fd)
        assert closers[fd] == threading.get_ident()


def test_without_another_thread_it_is_closed_at_once(closers: dict[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(closing, "_closers", [])
    monkeypatch.setattr(threading.Thread, "start", refuse)
    fd = memfd(SIZE)
    fput(fd)
    assert not is_open(fd)
    assert closers[fd] == threading.get_ident()


def test_a_number_that_is_no_descriptor_is_no_error() -> None:
    fd = memfd(1)
    os.close(fd)
    fput(fd)
    assert not is_open(fd)


def test_the_last_munmap_of_a_large_memory_file_does_not_close_it_itself(closers: dict[int, int]) -> None:
    machine = FileMachine()
    mm = machine.new_mm()
    fd = memfd(SIZE)
    vaddr = machine.map_fd(mm, fd, SIZE)
    os.close(fd)
    closers.clear()
    do_munmap(mm, vaddr, SIZE)
    delayed.join()
    assert len(machine.files) == 0
    assert set(closers.values()).isdisjoint({threading.get_ident()})
    assert len(closers) == 1
    machine.close()
