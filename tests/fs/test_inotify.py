"""News of files that change behind our back: from the host's inotify to the page cache."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from pathlib import Path

import pytest

from kerneld.fs.file_table import FileTable
from kerneld.fs.holes import MOST_EXTENTS
from kerneld.fs.inotify import NO_WATCH, Inotify
from kerneld.mm.space.munmap import exit_mmap
from shared.uapi.page import PAGE_SIZE
from tests.support.file_machine import FileMachine, open_descriptors


@pytest.fixture
def inotify() -> Iterator[Inotify]:
    inotify = Inotify()
    yield inotify
    inotify.close()


@pytest.fixture
def watched(machine: FileMachine, inotify: Inotify) -> FileMachine:
    """A machine whose files are watched."""
    machine.files.close()
    machine.files = FileTable(machine.frames, inotify)
    return machine


def is_readable(inotify: Inotify) -> bool:
    return bool(select.select([inotify.fd], [], [], 0)[0])


class TestInotify:
    def test_a_change_is_told_once(self, inotify: Inotify, tmp_path: Path) -> None:
        paths = [tmp_path / "one", tmp_path / "two"]
        watches = []
        for path in paths:
            path.write_bytes(b"content")
            fd = os.open(path, os.O_RDONLY)
            watches.append(inotify.add_watch(fd))
            os.close(fd)
        assert inotify.read() == set()
        os.truncate(paths[1], 3)
        os.truncate(paths[1], 1)
        assert is_readable(inotify)
        assert inotify.read() == {watches[1]}
        assert not is_readable(inotify)
        inotify.rm_watch(watches[1])
        os.truncate(paths[1], 0)
        os.truncate(paths[0], 0)
        assert inotify.read() == {watches[0]}

    def test_who_never_stops_writing_does_not_keep_us_reading(
        self, inotify: Inotify, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "file"
        path.write_bytes(b"content")
        fd = os.open(path, os.O_RDWR)
        watch = inotify.add_watch(fd)
        read = os.read
        nr_reads = 0

        def read_while_others_write(of: int, length: int) -> bytes:
            nonlocal nr_reads
            nr_reads += 1
            assert nr_reads < 10
            data = read(of, length)
            os.pwrite(fd, b"x", 0)
            return data

        os.pwrite(fd, b"x", 0)
        with monkeypatch.context() as patch:
            patch.setattr(os, "read", read_while_others_write)
            assert inotify.read() == {watch}
        assert is_readable(inotify)
        assert inotify.read() == {watch}
        os.close(fd)

    def test_a_memory_file(self, inotify: Inotify) -> None:
        fd = os.memfd_create("m")
        watch = inotify.add_watch(fd)
        os.ftruncate(fd, 10)
        assert inotify.read() == {watch}
        os.close(fd)

    def test_without_an_instance_nothing_is_told(self, inotify: Inotify) -> None:
        inotify.close()
        assert inotify.add_watch(0) == NO_WATCH
        assert inotify.read() == set()
        inotify.rm_watch(1)

    def test_too_much_news_may_be_about_anything(self, inotify: Inotify, tmp_path: Path) -> None:
        limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
        paths = [tmp_path / "one", tmp_path / "two"]
        for path in paths:
            path.write_bytes(b"")
            fd = os.open(path, os.O_RDONLY)
            assert inotify.add_watch(fd) != NO_WATCH
            os.close(fd)
        # Two that are alike in a row would be one.
        fds = [os.open(path, os.O_WRONLY) for path in paths]
        for _count in range(limit // 2 + 1):
            for fd in fds:
                os.ftruncate(fd, 0)
        for fd in fds:
            os.close(fd)
        assert inotify.read() is None
        assert inotify.read() == set()


class TestFilesThatAreCut:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        path = tmp_path / "file"
        path.write_bytes(b"f" * 3 * PAGE_SIZE)
        return path

    def test_pages_past_the_end_go(self, watched: FileMachine, path: Path) -> None:
        mm = watched.new_mm()
        fd = os.open(path, os.O_RDONLY)
        addr = watched.map_fd(mm, fd, 3 * PAGE_SIZE)
        watched.load(mm, addr, 1)
        (vma,) = mm.vmas
        assert vma.file is not None
        mapping = vma.file.mapping
        assert (set(mapping.pages), mm.rss.resident_pages) == ({0, 1, 2}, 3)
        os.truncate(path, PAGE_SIZE + 1)
        # A fault asks for the size, too: the truncation is noticed all the same.
        assert mapping.size_bytes() == PAGE_SIZE + 1
        watched.files.take_changes()
        assert (set(mapping.pages), mm.rss.resident_pages) == ({0, 1}, 2)
        assert watched.load(mm, addr + PAGE_SIZE, 2) == b"f\0"
        os.close(fd)

    def test_what_was_written_to_or_has_grown_is_as_before(self, watched: FileMachine, path: Path) -> None:
        mm = watched.new_mm()
        fd = os.open(path, os.O_RDWR)
        addr = watched.map_fd(mm, fd, 3 * PAGE_SIZE)
        watched.load(mm, addr, 1)
        os.pwrite(fd, b"new", 0)
        os.truncate(path, 9 * PAGE_SIZE)
        watched.files.take_changes()
        assert mm.rss.resident_pages == 3
        # From its new size on the next cut counts.
        os.truncate(path, 2 * PAGE_SIZE)
        watched.files.take_changes()
        assert mm.rss.resident_pages == 2
        os.close(fd)

    def test_what_a_longer_file_has_is_a_hole_where_nobody_has_written(self, watched: FileMachine, path: Path) -> None:
        """Source: Linux v6.8 mm/filemap.c:filemap_fault(): a hole that nobody has read is not in the cache."""
        mm = watched.new_mm()
        fd = os.open(path, os.O_RDWR)
        watched.map_fd(mm, fd, 3 * PAGE_SIZE)
        (vma,) = mm.vmas
        assert vma.file is not None
        mapping = vma.file.mapping
        os.lseek(fd, 7, os.SEEK_SET)
        os.pwrite(fd, b"new", 5 * PAGE_SIZE)
        os.truncate(path, 9 * PAGE_SIZE)
        watched.files.take_changes()
        assert [index for index in range(12) if mapping.host.is_hole(index)] == [3, 4, 6, 7, 8]
        assert [index for index in range(12) if not mapping.host.has(index)] == [3, 4, 6, 7, 8]
        os.truncate(path, 7 * PAGE_SIZE)
        watched.files.take_changes()
        assert [index for index in range(12) if mapping.host.is_hole(index)] == [3, 4, 6]
        assert os.lseek(fd, 0, os.SEEK_CUR) == 7
        os.close(fd)

    def test_what_a_very_sparse_file_has_is_not_looked_for_to_its_end(
        self, watched: FileMachine, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A file with more pieces than are looked for: what lies behind these counts as written to."""
        mm = watched.new_mm()
        fd = os.open(path, os.O_RDWR)
        watched.map_fd(mm, fd, PAGE_SIZE)
        looks = []
        seek = os.lseek

        def look(fd: int, offset: int, whence: int) -> int:
            looks.append(whence)
            return seek(fd, offset, whence)

        monkeypatch.setattr(os, "lseek", look)
        for number in range(MOST_EXTENTS + 50):
            os.pwrite(fd, b"x", 2 * (number + 1) * PAGE_SIZE)
        os.truncate(fd, 2 * (MOST_EXTENTS + 60) * PAGE_SIZE)
        watched.files.take_changes()
        assert len(looks) <= 2 * MOST_EXTENTS
        (vma,) = mm.vmas
        assert vma.file is not None
        holes = int(vma.file.mapping.host.absent(0, 2 * (MOST_EXTENTS + 60)).sum())
        assert MOST_EXTENTS // 2 < holes <= MOST_EXTENTS
        os.close(fd)

    def test_a_watch_lasts_as_long_as_the_mapping(self, watched: FileMachine, inotify: Inotify, path: Path) -> None:
        before = open_descriptors()
        for _count in range(3):
            mm = watched.new_mm()
            fd = os.open(path, os.O_RDONLY)
            watched.map_fd(mm, fd)
            os.close(fd)
            watched.mms.remove(mm)
            exit_mmap(mm)
            os.truncate(path, 10)
            assert inotify.read() == set()
        assert open_descriptors() == before
