"""Clients that keep to the records and to nothing else: each hurts itself alone.

Beside each of them a witness is served, and afterwards the daemon has as many descriptors, tasks and free frames as
before.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile.through_daemon import Witness, fds_of
from tests.support.client import Nursery
from tests.support.fuse import stuck_file_system
from tests.support.hostile_daemon import HostileDaemon, in_child
from tests.support.raw import CLONE, EXECVE, GETPID, LOAD, MMAP, MUNMAP, PROCREAD, STORE, TOUCH, RawThread, pack
from tests.support.watched_daemon import Daemon

PAGE = 4096
SHARED, PRIVATE_ANONYMOUS = 0x1, 0x22
MIB = 1 << 20


class PlainDaemon(HostileDaemon):
    """Without invariants: what is done here is done thousands of times. Few connections, so that they can run out."""

    options = ("--max-clients", "60", "--max-threads", "50")


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture(scope="module")
def shared_daemon(tmp_path_factory: pytest.TempPathFactory, nursery: Nursery) -> Iterator[HostileDaemon]:
    daemon = PlainDaemon(tmp_path_factory.mktemp("behaviour"), nursery, check_invariants=False)
    yield daemon
    daemon.close()


@pytest.fixture
def witness(shared_daemon: HostileDaemon) -> Iterator[Witness]:
    """Who must not notice: looked at before and after, when everything is as it was."""
    witness = Witness(shared_daemon.path)
    before = witness.free_kb(), fds_of(shared_daemon.process.pid), witness.tasks()
    yield witness
    witness.look()
    assert (witness.free_kb(), fds_of(shared_daemon.process.pid), witness.tasks()) == before
    witness.close()


def memory_kb(daemon: Daemon) -> int:
    """Return the daemon's private memory: the machine's RAM is a shared file."""
    for line in Path(f"/proc/{daemon.process.pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1])
    raise AssertionError("no RssAnon")


def test_who_never_reads_costs_one_answer(shared_daemon: HostileDaemon, witness: Witness) -> None:
    before = memory_kb(shared_daemon)

    def behave(raw: RawThread) -> bool:
        address = raw.call(MMAP, 0, 16 * PAGE, 3, PRIVATE_ANONYMOUS, -1, 0).ret
        raw.socket.settimeout(None)
        raw.socket.setblocking(False)
        sent = 0
        try:
            while sent < 100_000:
                raw.send(pack(LOAD, address, 16 * PAGE) * 6)
                sent += 1
        except BlockingIOError:
            return sent < 10_000
        return False

    assert in_child(shared_daemon, behave, witness.look) == 0
    assert memory_kb(shared_daemon) < before + 4096


def test_a_stopped_client_keeps_nobody_waiting(shared_daemon: HostileDaemon, witness: Witness) -> None:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            raw = RawThread()
            raw.attach(str(shared_daemon.path))
            raw.send(pack(GETPID))
            os.kill(os.getpid(), signal.SIGSTOP)
            status = 0 if raw.receive()[0].ret == os.getpid() else 2
        finally:
            os._exit(status)
    assert os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1])
    witness.look()
    os.kill(pid, signal.SIGCONT)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_who_says_nothing_keeps_nobody_out(shared_daemon: HostileDaemon, witness: Witness) -> None:
    """Up to the limit of a process, by two of them: more than the daemon takes in all."""

    def behave(raw: RawThread) -> bool:
        threads = [RawThread() for _ in range(49)]
        for thread in threads:
            thread.connect(str(shared_daemon.path))
        return raw.call(GETPID).ret == os.getpid()

    def look() -> None:
        assert in_child(shared_daemon, behave, lambda: _newcomers(shared_daemon, witness)) == 0

    assert in_child(shared_daemon, behave, look) == 0


def _newcomers(daemon: Daemon, witness: Witness) -> None:
    for _ in range(20):
        assert in_child(daemon, lambda raw: raw.call(GETPID).ret == os.getpid(), witness.look) == 0


def test_one_process_has_so_many_connections(shared_daemon: HostileDaemon, witness: Witness) -> None:
    silent = [RawThread() for _ in range(50)]
    for thread in silent:
        thread.connect(str(shared_daemon.path))
    # This process has the witness's as well: the last was one too many.
    assert silent[-1].is_ended()
    for thread in silent:
        thread.close()


def test_thousands_of_descriptors(shared_daemon: HostileDaemon, witness: Witness) -> None:
    """Nobody asked for them: they are closed again with each datagram."""

    def behave(raw: RawThread) -> bool:
        fds = [os.open("/dev/null", os.O_RDONLY)] * 253
        return all(raw.exchange(pack(GETPID), fds)[0].ret == os.getpid() for _ in range(40))

    assert in_child(shared_daemon, behave, witness.look) == 0


def test_mapping_files_ends_before_the_daemon_is_out_of_descriptors(tmp_path: Path, nursery: Nursery) -> None:
    """A client that maps one file after another hurts itself alone: others connect, and map files."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (400, 400))
            daemon = PlainDaemon(tmp_path, nursery, check_invariants=False)
            witness = Witness(daemon.path)

            def behave(raw: RawThread) -> bool:
                for _ in range(400):
                    fd = os.memfd_create("one of many")
                    os.ftruncate(fd, PAGE)
                    ret = raw.call(MMAP, 0, PAGE, 1, SHARED, 3, 0, fds=[fd]).ret
                    os.close(fd)
                    if ret < 0:
                        return ret == -errno.EMFILE
                return False

            def look() -> None:
                _newcomers(daemon, witness)
                assert in_child(daemon, _maps_a_file, witness.look) == 0

            status = in_child(daemon, behave, look)
            daemon.end()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _maps_a_file(raw: RawThread) -> bool:
    fd = os.memfd_create("a file")
    os.ftruncate(fd, PAGE)
    return raw.call(MMAP, 0, PAGE, 1, SHARED, 3, 0, fds=[fd]).ret > 0


def test_a_file_system_that_does_not_answer_keeps_nobody_waiting(
    shared_daemon: HostileDaemon, witness: Witness, tmp_path: Path
) -> None:
    """What is asked of it would never come back: fstat, pread, and the close of a descriptor that nobody asked for."""
    with stuck_file_system(tmp_path) as stuck:

        def behave(raw: RawThread) -> bool:
            fd = os.open(stuck.file, os.O_RDONLY)
            mapped = raw.call(MMAP, 0, PAGE, 1, SHARED, fd, 0, fds=[fd]).ret
            executed = raw.call(EXECVE, 0, 0, 0, data=b"a\0\0", fds=[fd]).ret
            ignored = raw.exchange(pack(GETPID), [fd] * 3)[0].ret
            return (mapped, executed, ignored) == (-errno.ENODEV, -errno.EACCES, os.getpid())

        def look() -> None:
            _newcomers(shared_daemon, witness)
            stuck.end()

        assert in_child(shared_daemon, behave, look) == 0
    until_closed(shared_daemon, "/file")


def until_closed(daemon: Daemon, name: str) -> None:
    """Wait until the daemon has no descriptor of this name any more: what waited is closed by a thread of its own."""
    directory = Path(f"/proc/{daemon.process.pid}/fd")
    while True:
        names = []
        for fd in directory.iterdir():
            with contextlib.suppress(FileNotFoundError):
                names.append(os.readlink(fd))
        if not any(name in link for link in names):
            return
        os.sched_yield()


def test_a_socket_that_lingers_keeps_nobody_waiting(shared_daemon: HostileDaemon, witness: Witness) -> None:
    """Its last close waits until the other side has taken what was sent, or for as long as SO_LINGER says."""
    before = fds_of(shared_daemon.process.pid)
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]

    def behave(raw: RawThread) -> bool:
        sender = socket.create_connection(("127.0.0.1", port))
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 600))
        sender.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                sender.send(bytes(1 << 20))
        # The daemon's is to be the last close.
        os.kill(shared_daemon.process.pid, signal.SIGSTOP)
        raw.send(pack(GETPID), [sender.fileno()])
        os.close(sender.detach())
        os.kill(shared_daemon.process.pid, signal.SIGCONT)
        return raw.receive()[0].ret == os.getpid()

    def look() -> None:
        _newcomers(shared_daemon, witness)
        listener.close()

    assert in_child(shared_daemon, behave, look) == 0
    # The other side has hung up: there is nobody left to wait for.
    while fds_of(shared_daemon.process.pid) != before:
        os.sched_yield()


def _odd_descriptors(tmp_path: Path) -> list[tuple[int, int, int]]:
    """Return descriptors with the errnos of mapping and of executing each."""
    os.mkfifo(tmp_path / "fifo")
    file = tmp_path / "file"
    file.write_bytes(b"x" * PAGE)
    return [
        (os.open(tmp_path, os.O_RDONLY), errno.ENODEV, errno.EACCES),
        (os.open(tmp_path / "fifo", os.O_RDWR), errno.ENODEV, errno.EACCES),
        (socket.socketpair()[0].detach(), errno.ENODEV, errno.EACCES),
        (os.open("/dev/zero", os.O_RDWR), 0, errno.EACCES),
        (os.open("/dev/null", os.O_RDWR), errno.ENODEV, errno.EACCES),
        (os.eventfd(0), errno.ENODEV, errno.EACCES),
        (os.open(file, os.O_PATH), errno.EBADF, errno.EBADF),
        (os.open(file, os.O_WRONLY), errno.EACCES, errno.EACCES),
        (os.open(file, os.O_RDONLY), 0, errno.EACCES),
    ]


def test_descriptors_of_all_kinds(shared_daemon: HostileDaemon, witness: Witness, tmp_path: Path) -> None:
    def behave(raw: RawThread) -> bool:
        for fd, mapped, executed in _odd_descriptors(tmp_path):
            ret = raw.call(MMAP, 0, PAGE, 1, SHARED, fd, 0, fds=[fd]).ret
            assert ret == -mapped if mapped else ret > 0, (os.readlink(f"/proc/self/fd/{fd}"), ret)
            assert raw.call(EXECVE, 0, 0, 0, data=b"a\0\0", fds=[fd]).ret == -executed
        return True

    assert in_child(shared_daemon, behave, witness.look) == 0


def test_a_file_that_is_truncated_deleted_and_replaced(
    shared_daemon: HostileDaemon, witness: Witness, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"a" * 4 * PAGE)

    def behave(raw: RawThread) -> bool:
        fd = os.open(path, os.O_RDWR)
        address = raw.call(MMAP, 0, 4 * PAGE, 3, SHARED, fd, 0, fds=[fd]).ret
        assert raw.call(STORE, address, 4, data=b"dirt").ret == 4
        os.unlink(path)
        path.write_bytes(b"b" * 4 * PAGE)
        os.ftruncate(fd, PAGE)
        assert raw.call(LOAD, address, 4).data == b"dirt"
        assert raw.call(26, address, 4 * PAGE, 4).ret == 0
        assert os.pread(fd, 4, 0) == b"dirt"
        assert path.read_bytes()[:4] == b"bbbb"
        (reply,) = raw.exchange(pack(LOAD, address + 3 * PAGE, 1))
        return reply.signo == signal.SIGBUS

    assert in_child(shared_daemon, behave, witness.look) == 0


def test_tokens_run_out_for_their_owner_alone(shared_daemon: HostileDaemon, witness: Witness) -> None:
    def behave(raw: RawThread) -> bool:
        rets = [raw.call(CLONE).ret for _ in range(17)]
        return all(ret > 0 for ret in rets[:16]) and rets[16] == -errno.EAGAIN

    assert in_child(shared_daemon, behave, witness.look) == 0


def test_vmas_run_out_for_their_owner_alone(shared_daemon: HostileDaemon, witness: Witness) -> None:
    """65,530 of them: every other page of a mapping is unmapped until there is no more room for the pieces."""
    before = memory_kb(shared_daemon)

    def behave(raw: RawThread) -> bool:
        address = raw.call(MMAP, 0, 140_000 * PAGE, 3, 0x4022, -1, 0).ret
        for first in range(0, 70_000, 1000):
            batch = b"".join(pack(MUNMAP, address + (2 * n + 1) * PAGE, PAGE) for n in range(first, first + 1000))
            rets = [reply.ret for reply in raw.exchange(batch)]
            if rets[-1] < 0:
                return set(rets) <= {0, -errno.ENOMEM} and raw.call(GETPID).ret == os.getpid()
        return False

    assert in_child(shared_daemon, behave, witness.look) == 0
    # What the host's allocator keeps for the next time is no leak, and is bounded.
    assert memory_kb(shared_daemon) < before + 120_000


def test_who_takes_all_of_ram_stops_nobody(shared_daemon: HostileDaemon, witness: Witness) -> None:
    """The machine has 16 MiB; others have to be let in and served while somebody holds nearly all of it."""

    def behave(raw: RawThread) -> bool:
        address = raw.call(MMAP, 0, 64 * MIB, 3, 0x4022, -1, 0).ret
        replies = raw.exchange(b"".join(pack(TOUCH, address + n * MIB // 4, MIB // 4, 1) for n in range(256)))
        return replies[-1].signo == signal.SIGKILL

    def hog(raw: RawThread) -> bool:
        free_kb = int(raw.call(PROCREAD, 0, PAGE, data=b"meminfo").data.split()[4])
        pages = free_kb // 4 - 40
        address = raw.call(MMAP, 0, pages * PAGE, 3, 0x4022, -1, 0).ret
        return raw.call(TOUCH, address, pages * PAGE, 1).ret == pages

    # It is killed, for good: by the real signal, or by what the reply says before that comes.
    assert in_child(shared_daemon, behave, witness.look) in (0, -signal.SIGKILL)
    assert in_child(shared_daemon, hog, lambda: _wants_memory(shared_daemon, witness)) == -signal.SIGKILL
    assert shared_daemon.oom_kills() >= 2


def test_memory_hidden_in_forks_that_never_end_is_its_owners(shared_daemon: HostileDaemon, witness: Witness) -> None:
    """Each clone token holds what its owner then writes anew. The owner is killed, not a larger process beside it."""

    def hide(raw: RawThread) -> bool:
        address = raw.call(MMAP, 0, MIB, 3, 0x4022, -1, 0).ret
        for _ in range(16):
            replies = raw.exchange(pack(TOUCH, address, MIB, 1) + pack(CLONE))
            if any(reply.signo == signal.SIGKILL for reply in replies):
                return True
        return False

    def beside(raw: RawThread) -> bool:
        address = raw.call(MMAP, 0, 4 * MIB, 3, 0x4022, -1, 0).ret
        assert raw.call(TOUCH, address, 4 * MIB, 1).ret == 4 * MIB // PAGE
        assert in_child(shared_daemon, hide, lambda: None) in (0, -signal.SIGKILL)
        return raw.call(GETPID).ret == os.getpid()

    kills = shared_daemon.oom_kills()
    assert in_child(shared_daemon, beside, witness.look) == 0
    assert shared_daemon.oom_kills() == kills + 1


def _wants_memory(daemon: Daemon, witness: Witness) -> None:
    def modest(raw: RawThread) -> bool:
        address = raw.call(MMAP, 0, MIB, 3, PRIVATE_ANONYMOUS, -1, 0).ret
        return raw.call(TOUCH, address, MIB, 1).ret == MIB // PAGE

    for _ in range(3):
        assert in_child(daemon, modest, witness.look) == 0
