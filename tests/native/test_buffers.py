"""What the host reads and writes of a program's memory: whatever happens to the pages meanwhile, as outside."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.native.inside import Inside
from tests.support.client import Nursery
from tests.support.watched_daemon import Daemon

WHOLE = """
import os, socket, sys
ZEROS, LONG = 1 << 20, 300000
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC, 0o600)

def reads_zeros(_):
    zeros = os.open("/dev/zero", os.O_RDONLY)
    return sum(os.readv(zeros, [room]) != ZEROS for room in [bytearray(ZEROS)] * 100) + sum(
        len(os.read(zeros, ZEROS)) != ZEROS for _ in range(400))

def appends(child):
    return sum(os.write(file, bytes([child]) * LONG) != LONG for _ in range(20))

def reads_on(_):
    parts = list(iter(lambda: os.read(file, LONG), b""))
    return sum(len(part) != LONG or len(set(part)) != 1 for part in parts)

def wait_until_it_sleeps(pid):
    while open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[0] == "R":
        os.sched_yield()

def reads_much(child):
    ends = socket.socketpair() if child % 2 else (socket.create_connection(server.getsockname()), server.accept()[0])
    ends[0].setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 5)
    short = 0
    for receive in ends[0].recv, lambda room: os.read(ends[0].fileno(), room):
        ends[1].send(b"four")
        if not os.fork():
            wait_until_it_sleeps(os.getppid())
            ends[1].send(b"and more")
            os._exit(0)
        short += len(receive(100)) < 5
        os.wait()
    return short

server = socket.create_server(("127.0.0.1", 0))
for work in reads_zeros, appends, reads_on, reads_much:
    os.lseek(file, 0, os.SEEK_SET)
    for child in range(4):
        if not os.fork():
            os._exit(work(child))
    print(work.__name__, sorted(os.waitpid(-1, 0)[1] >> 8 for _ in range(4)), os.fstat(file).st_size, flush=True)
os.unlink(sys.argv[1])
"""
ERRORS = """
import os, select, socket, struct
server = socket.create_server(("127.0.0.1", 0))

def reset():
    client, (peer, _) = socket.create_connection(server.getsockname()), server.accept()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()
    return client

def refused():
    ends = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
    ends[1].bind(("127.0.0.1", 0))
    ends[0].connect(ends[1].getsockname())
    ends[1].close()
    ends[0].send(b"to nobody")
    return ends[0]

for make in reset, refused:
    for way in socket.socket.recv, socket.socket.recvmsg, lambda end, room: os.read(end.fileno(), room):
        end = make()
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 5, 0))
        select.select([end], [], [], 10)
        try:
            print(make.__name__, way(end, 100))
        except OSError as error:
            print(make.__name__, os.strerror(error.errno))
        print(end.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), end.recv(100) if make is reset else b"", flush=True)
"""
SECTORS = """
import mmap, os, sys
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600)
memory = memoryview(mmap.mmap(-1, 1 << 20))
memory[:] = bytes(range(256)) * 4096
pieces = [memory[4096:8192], memory[512:1024], memory[65536:131072], memory[1024:1536]]
print(os.writev(file, pieces), os.pwritev(file, pieces[::-1], 8192), os.pwritev(file, [memory], 0))
print(os.readv(file, pieces), os.preadv(file, [memory[:4096], memory[8192:8704]], 512), bytes(memory[8192:8200]))
os.unlink(sys.argv[1])
"""


class SmallDaemon(Daemon):
    """A kerneld whose RAM is smaller than the buffers."""

    options = ("--ram", "8M", "--swap", "40M")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Inside]:
    """A small machine of this test's own."""
    nursery = Nursery()
    daemon = SmallDaemon(tmp_path, nursery, check_invariants=False)
    inside = Inside(daemon.environment)
    yield inside
    inside.close()
    daemon.close()
    nursery.close()


def test_a_call_waits_while_its_buffers_are_swapped_out(inside: Inside, programs: dict[str, Path]) -> None:
    end = inside.agrees([str(programs["blocked"])])
    assert end.status == 0
    assert end.output.count("\n") == 20


def test_semaphores_and_messages(inside: Inside, programs: dict[str, Path]) -> None:
    """What semctl, msgrcv, mq_notify and adjtimex read and write; a signal ends the waits of semop and msgrcv."""
    end = inside.agrees([str(programs["ipc"])])
    assert end.status == 0
    assert end.output.count("ended by a signal: 1") == 2


def test_outputs_of_clone_and_prctl_and_calls_with_much(inside: Inside, programs: dict[str, Path]) -> None:
    output = inside.agrees([str(programs["outputs"])]).output
    assert "clone: 20 told, 20 ended" in output
    assert "written: 37748736 37748736" in output


def test_bad_buffers_large_buffers_and_what_is_written_of_them(
    inside: Inside, programs: dict[str, Path], tmp_path: Path
) -> None:
    assert "pages 2\n" in inside.agrees([str(programs["buffers"])], directory=tmp_path).output


def test_buffers_that_are_larger_than_the_ram(small: Inside, programs: dict[str, Path], tmp_path: Path) -> None:
    end = small.run([str(programs["buffers"])], directory=tmp_path)
    outside = small.outside([str(programs["buffers"])], directory=tmp_path)
    assert end.output.splitlines()[:7] == outside.output.splitlines()[:7]
    assert end.status == 0


def test_pages_that_are_given_to_a_pipe(inside: Inside, programs: dict[str, Path]) -> None:
    output = inside.agrees([str(programs["vmsplice"])]).output
    assert "more than there is room for: 65536" in output
    assert "a bad piece behind a good one: 10" in output


def test_a_read_or_write_is_whole(inside: Inside, tmp_path: Path) -> None:
    """Of a device, also if the processor is wanted meanwhile; of a file, though others read on and append to it.

    And of a socket as much as it is to have at the least.
    """
    output = inside.agrees([sys.executable, "-I", "-c", WHOLE, str(tmp_path / "file")]).output
    assert output.count("[0, 0, 0, 0]") == 4


def test_buffers_of_whole_sectors(inside: Inside, tmp_path: Path) -> None:
    """A file that is opened with O_DIRECT is read and written by pieces that are aligned to sectors alone."""
    path = tmp_path / "file"
    try:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_DIRECT, 0o600))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        pytest.skip("this file system has no O_DIRECT")
    output = inside.agrees([sys.executable, "-I", "-c", SECTORS, str(path)]).output
    assert output.startswith(f"{70656} {70656} {1 << 20}\n")


def test_an_error_that_a_socket_tells_once(inside: Inside) -> None:
    """A connection that was reset, a datagram that nobody took. Source: Linux v6.8 include/net/sock.h:sock_error()."""
    output = inside.agrees([sys.executable, "-I", "-c", ERRORS]).output
    assert output.count("reset Connection reset") == 3
    assert output.count("refused Connection refused") == 3
