"""Who may do what: clients of other users, really started under another uid, which takes root."""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shared.client import KerneldUnavailable, Process, path, realmem
from shared.client.connection import Connection, find_daemon
from shared.uapi.syscalls import Nr
from tests.hostile.other_user import GROUP, OTHER_UID, THIRD_UID, living_as, run_as
from tests.support.client import ROOT, Nursery
from tests.support.raw import (
    GETUID,
    MADVISE,
    MMAP,
    OPEN,
    PAGE_CONTENTS,
    PRLIMIT64,
    PROCESS_MADVISE,
    PROCESS_VM_READV,
    PROCREAD,
    RAM,
    SETUID,
    RawThread,
)
from tests.support.rights import needs_another_user
from tests.support.watched_daemon import Daemon

pytestmark = needs_another_user
PAGE = 4096


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory that everybody can reach, unlike pytest's own."""
    name = tempfile.mkdtemp(prefix="kerneld-test-")
    os.chmod(name, 0o711)
    yield Path(name)
    shutil.rmtree(name)


class OpenDaemon(Daemon):
    """A daemon whose machine members of GROUP may use."""

    options = ("--allow-group", str(GROUP))


@pytest.fixture
def daemon(directory: Path, nursery: Nursery) -> Iterator[Daemon]:
    daemon = OpenDaemon(directory, nursery)
    yield daemon
    daemon.close()


def as_user(daemon: Daemon, calls: Callable[[RawThread], object], uid: int = OTHER_UID) -> object:
    """Return what `calls` does with a connection that another user has attached."""

    def attached() -> object:
        raw = RawThread()
        assert raw.attach(str(daemon.path)) == os.getpid()
        return calls(raw)

    return run_as(uid, attached, (GROUP,))


def test_who_is_not_of_the_group_is_kept_out(daemon: Daemon) -> None:
    def connect() -> int | None:
        try:
            RawThread().connect(str(daemon.path))
        except OSError as error:
            return error.errno
        return None

    assert run_as(OTHER_UID, connect) == errno.EACCES
    assert run_as(OTHER_UID, connect, (GROUP,)) is None


def test_without_a_group_everybody_is_kept_out(directory: Path, nursery: Nursery) -> None:
    daemon = Daemon(directory, nursery)

    def connect() -> int | None:
        try:
            RawThread().connect(str(daemon.path))
        except OSError as error:
            return error.errno
        return None

    assert run_as(OTHER_UID, connect, (GROUP,)) == errno.EACCES
    daemon.close()


@pytest.mark.parametrize("uid", [0, THIRD_UID])
def test_another_user_sees_nothing_of_others(daemon: Daemon, uid: int) -> None:
    with living_as(uid, lambda: _attach_and_map(daemon)) as (pid, address):
        iovecs = struct.pack("<QQQQ", address, 8, address, 8)

        def look(raw: RawThread) -> list[int]:
            private = [raw.call(PROCREAD, 0, PAGE, data=f"{pid}/{name}".encode()).ret for name in PRIVATE]
            return [
                *private,
                raw.call(RAM, pid).ret,
                raw.call(RAM, os.getpid()).ret,
                raw.call(OPEN, pid, 0, 0, data=struct.pack("<QQQ", address, address + PAGE, 0)).ret,
                raw.call(PAGE_CONTENTS, 1, 0).ret,
                raw.call(PROCESS_VM_READV, pid, 0, 1, 0, 1, 0, data=iovecs).ret,
                raw.call(PROCESS_MADVISE, pid, 0, 1, 20, 0, data=iovecs[:16]).ret,
                raw.call(PRLIMIT64, pid, 3, 0, 1).ret,
                raw.call(SETUID, 0).ret,
                raw.call(GETUID).ret,
            ]

        denied = [-errno.EACCES] * 4 + [-errno.EPERM] * 5 + [-errno.EACCES] + [-errno.EPERM] * 2
        assert as_user(daemon, look) == [*denied, OTHER_UID]


def _attach_and_map(daemon: Daemon) -> tuple[RawThread, int]:
    raw = RawThread()
    assert raw.attach(str(daemon.path)) == os.getpid()
    address = raw.call(MMAP, 0, PAGE, 3, 0x8022, -1, 0).ret
    assert address > 0
    return raw, address


PRIVATE = ("maps", "smaps", "smaps_rollup", "pagemap")


def test_ones_own_pagemap_hides_frame_numbers(daemon: Daemon) -> None:
    def own(raw: RawThread) -> tuple[int, int]:
        address = raw.call(MMAP, 0, PAGE, 3, 0x8022, -1, 0).ret
        (entry,) = struct.unpack("<Q", raw.call(PROCREAD, address // PAGE * 8, 8, data=b"self/pagemap").data)
        return entry >> 63, entry & (1 << 55) - 1

    assert as_user(daemon, own) == (1, 0)


def test_a_real_setuid_later_changes_nothing(daemon: Daemon) -> None:
    """Credentials are those of the attach; every datagram must be the attached process's."""

    def drop() -> list[int]:
        raw = RawThread()
        raw.attach(str(daemon.path))
        before = raw.call(GETUID).ret
        os.setresuid(OTHER_UID, OTHER_UID, OTHER_UID)
        return [before, raw.call(GETUID).ret, raw.call(MADVISE, 0, 0, 0).ret]

    assert run_as(0, drop) == [0, 0, 0]


def _writes(fd: int) -> list[int]:
    """Return the errno of each way to write through a descriptor that one was given."""
    ways: list[Callable[[], object]] = [
        lambda: os.write(fd, b"x"),
        lambda: os.pwrite(fd, b"x", 0),
        lambda: os.ftruncate(fd, 0),
        lambda: mmap.mmap(fd, PAGE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE),
        lambda: os.open(f"/proc/self/fd/{fd}", os.O_RDWR),
        lambda: os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_TRUNC),
        lambda: os.fchmod(fd, 0o666),
    ]
    results = []
    for way in ways:
        try:
            way()
            results.append(0)
        except OSError as error:
            results.append(error.errno or -1)
    return results


@pytest.mark.parametrize("which", ["ram", "table", "sequence"])
def test_descriptors_of_the_machine_are_read_only_for_another_user(daemon: Daemon, which: str) -> None:
    """Somebody privileged may pass them on: they cannot be written even so."""
    entries = realmem.map_anonymous(PAGE)
    raw = RawThread()
    assert raw.attach(str(daemon.path)) == os.getpid()
    fds = list(raw.call(RAM, os.getpid()).fds)
    table = raw.call(OPEN, os.getpid(), 0, 0, data=struct.pack("<QQQ", 1 << 32, (1 << 32) + PAGE, entries))
    assert table.ret == 0
    fds += table.fds
    fd = fds[("ram", "table", "sequence").index(which)]
    results = run_as(OTHER_UID, lambda: _writes(fd))
    assert all(results), results
    mapped = realmem.map_file(PAGE, fd)
    with pytest.raises(PermissionError):
        realmem.protect(mapped, PAGE, 3)
    realmem.unmap(mapped, PAGE)
    for other in fds:
        os.close(other)
    raw.close()
    realmem.unmap(entries, PAGE)


class SealedDaemon(Daemon):
    """A daemon that takes no programs of kerneld exec in."""

    options = ("--no-exec",)


def test_the_ram_is_sealed_against_root_too(directory: Path, nursery: Nursery) -> None:
    daemon = SealedDaemon(directory, nursery)
    raw = RawThread()
    raw.attach(str(daemon.path))
    (fd,) = raw.call(RAM, os.getpid()).fds
    writable = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
    with pytest.raises(PermissionError):
        os.pwrite(writable, b"x", 0)
    with pytest.raises(PermissionError):
        mmap.mmap(writable, PAGE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    os.close(writable)
    os.close(fd)
    raw.close()
    daemon.close()


def test_only_the_superuser_gets_ram_that_can_be_written(daemon: Daemon) -> None:
    assert as_user(daemon, lambda raw: raw.call(Nr.NATIVE).ret) == -errno.EPERM


def test_a_strangers_daemon_at_the_path_that_nobody_chose_is_refused(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = directory / "kerneld.sock"
    os.chmod(directory, 0o777)
    listener = run_listener(planted)
    monkeypatch.setattr(path, "fallback_socket_path", lambda: str(planted))
    monkeypatch.delenv("KERNELD_SOCKET", raising=False)
    try:
        with pytest.raises(KerneldUnavailable, match=f"it is run by uid {OTHER_UID}"):
            Process.attach(str(planted))
        # Nor does `kerneld stop` send a signal to a process of the stranger's choice.
        with pytest.raises(KerneldUnavailable, match=f"it is run by uid {OTHER_UID}"):
            find_daemon(str(planted))
        # Named on purpose, it is the user's own choice, as on a lab machine.
        monkeypatch.setenv("KERNELD_SOCKET", str(planted))
        Connection(str(planted), lambda _late: None).close()
    finally:
        os.close(listener)


def run_listener(at: Path) -> int:
    """Return a pipe's end that keeps another user's listener alive until it is closed."""
    read_fd, write_fd = os.pipe()
    ready_read, ready_write = os.pipe()
    if os.fork() == 0:
        os.close(write_fd)
        os.setresuid(OTHER_UID, OTHER_UID, OTHER_UID)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(str(at))
        listener.listen(5)
        os.write(ready_write, b"x")
        os.read(read_fd, 1)
        os._exit(0)
    os.close(read_fd)
    os.read(ready_read, 1)
    os.close(ready_read)
    os.close(ready_write)
    return write_fd


def test_an_unknown_group_is_one_line_and_2() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "kerneld", "start", "--allow-group", "no such group"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "there is no group 'no such group'" in done.stderr
