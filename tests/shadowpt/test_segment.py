"""A segment leaves no name and no writable descriptor, and what it hands out can only be read."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from typing import Any

import posix_ipc
import pytest

from kerneld.shadowpt import segment as segment_module
from kerneld.shadowpt.segment import Segment
from tests.support.descriptors import open_descriptors
from tests.support.rights import needs_another_user
from tests.support.watched_daemon import shm_names

NAME = f"kerneld-{os.getpid()}-"


@pytest.fixture(autouse=True)
def _no_name() -> Iterator[None]:
    assert shm_names(os.getpid()) == []
    yield
    assert shm_names(os.getpid()) == []


@pytest.fixture
def segment() -> Iterator[Segment]:
    made = Segment(8192)
    yield made
    made.close()


def test_no_name_is_left(segment: Segment) -> None:
    assert shm_names(os.getpid()) == []


def test_the_name_does_exist_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def spy(_fd: int, _offset: int, _size: int) -> None:
        seen.extend(shm_names(os.getpid()))
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "posix_fallocate", spy)
    with pytest.raises(OSError, match="full"):
        Segment(4096)
    (name,) = seen
    assert name.startswith(NAME)


@pytest.mark.parametrize(
    ("directory", "why"), [("/dev/null", "is missing"), ("/nowhere/shm", "is missing"), ("/proc", "is full")]
)
def test_what_is_wrong_with_the_place_is_said_by_its_name(
    monkeypatch: pytest.MonkeyPatch, directory: str, why: str
) -> None:
    """/proc has no room for anything, and another owner where the tests are not root's."""

    def refuse(*_args: object, **_kwargs: object) -> None:
        raise posix_ipc.ExistentialError("No shared memory exists with the specified name")

    monkeypatch.setattr(segment_module, "_DIRECTORY", directory)
    monkeypatch.setattr(posix_ipc, "SharedMemory", refuse)
    monkeypatch.setattr(os, "access", lambda path, mode: True)
    with pytest.raises(OSError, match=f"{directory} {why}"):
        Segment(4096)


def test_a_place_that_may_not_be_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    assert segment_module.why_no_segment() == ""
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert segment_module.why_no_segment() == "/dev/shm may not be written to"


def test_a_place_that_may_only_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """There unlink fails as well, with another error than that of a name which does not exist."""

    def refuse(*_args: object, **_kwargs: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(posix_ipc, "SharedMemory", refuse)
    monkeypatch.setattr(posix_ipc, "unlink_shared_memory", refuse)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(OSError, match="/dev/shm may not be written to"):
        Segment(4096)


def test_it_starts_as_zeros_and_stores_are_seen_by_a_reader(segment: Segment) -> None:
    fd = segment.client_fd()
    assert os.pread(fd, 9000, 0) == bytes(8192)
    segment.words[1023] = 0x0123_4567_89AB_CDEF
    assert os.pread(fd, 8, 8184) == (0x0123_4567_89AB_CDEF).to_bytes(8, "little")
    os.close(fd)


def test_its_memory_is_allocated_in_full(segment: Segment) -> None:
    fd = segment.client_fd()
    assert os.fstat(fd).st_blocks * 512 >= 8192
    os.close(fd)


def test_the_descriptor_can_only_be_read(segment: Segment) -> None:
    fd = segment.client_fd()
    try:
        assert os.fstat(fd).st_mode & 0o7777 == 0o400
        with pytest.raises(PermissionError):
            mmap.mmap(fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(fd, b"x")
        with pytest.raises(OSError, match="Invalid argument"):
            os.ftruncate(fd, 0)
        with mmap.mmap(fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ) as readable:
            assert readable[:8] == bytes(8)
    finally:
        os.close(fd)


@needs_another_user
def test_another_user_cannot_open_it_for_writing(segment: Segment) -> None:
    fd = segment.client_fd()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
        except PermissionError:
            status = 0
        finally:
            os._exit(status)
    os.close(fd)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_umask_that_takes_everything_does_no_harm() -> None:
    before = os.umask(0o777)
    try:
        made = Segment(4096)
    finally:
        os.umask(before)
    fd = made.client_fd()
    assert os.fstat(fd).st_mode & 0o7777 == 0o400
    os.close(fd)
    made.close()


def test_one_read_only_descriptor_is_kept_and_none_after_close() -> None:
    before = open_descriptors()
    made = Segment(4096)
    kept = {fd: target for fd, target in open_descriptors().items() if NAME in target}
    assert len(kept) == 1
    with open(f"/proc/self/fdinfo/{next(iter(kept))}") as info:
        flags = next(int(line.split()[1], 8) for line in info if line.startswith("flags:"))
    assert flags & os.O_ACCMODE == os.O_RDONLY
    assert flags & os.O_CLOEXEC
    made.close()
    assert open_descriptors() == before


def test_close_unmaps(segment: Segment) -> None:
    made = Segment(4096)
    with open("/proc/self/maps") as maps:
        mapped = maps.read().count(NAME)
    made.close()
    with open("/proc/self/maps") as maps:
        assert maps.read().count(NAME) == mapped - 1


@pytest.mark.parametrize("step", ["create", "allocate", "reopen", "map"])
def test_a_failure_at_any_step_leaves_nothing(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    before = open_descriptors()
    real = posix_ipc.SharedMemory

    def shared_memory(*args: Any, **kwargs: Any) -> Any:
        if step == ("reopen" if kwargs.get("read_only") else "create"):
            raise posix_ipc.PermissionsError("no")
        return real(*args, **kwargs)

    def fail(*_args: Any) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(posix_ipc, "SharedMemory", shared_memory)
    if step == "allocate":
        monkeypatch.setattr(os, "posix_fallocate", fail)
    if step == "map":
        monkeypatch.setattr(segment_module, "map_without_descriptor", fail)
    with pytest.raises(OSError, match=r"no|full"):
        Segment(4096)
    assert shm_names(os.getpid()) == []
    assert open_descriptors() == before


def test_an_interrupt_in_between_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_descriptors()

    def interrupt(*_args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fchmod", interrupt)
    with pytest.raises(KeyboardInterrupt):
        Segment(4096)
    assert shm_names(os.getpid()) == []
    assert open_descriptors() == before
