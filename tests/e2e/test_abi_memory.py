"""The memory calls' rules about descriptors, /proc, and the machine's RAM, by a client that knows docs/abi.md alone.

Sections: Linux calls (mmap and its errnos); Requests of this machine (procread, ram).
"""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import pytest

from tests.e2e import scripts
from tests.e2e.raw_session import (
    ANONYMOUS,
    BASE,
    FIXED,
    PAGE,
    PRIVATE,
    READ,
    RW,
    SHARED,
    SIGSEGV,
    attach,
    catch,
    load,
    map_file,
    map_pages,
    store,
    touch,
)
from tests.support import raw
from tests.support.client import Client
from tests.support.watched_daemon import Daemon


@pytest.fixture
def client(daemon: Daemon) -> Client:
    return attach(daemon)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"f" * 2 * PAGE)
    return path


@pytest.mark.parametrize(
    ("mode", "prot", "kind", "ret"),
    [
        (os.O_RDONLY, READ, SHARED, BASE),
        (os.O_RDONLY, RW, SHARED, -errno.EACCES),
        (os.O_RDONLY, RW, PRIVATE, BASE),
        (os.O_WRONLY, READ, SHARED, -errno.EACCES),
        (os.O_WRONLY, READ, PRIVATE, -errno.EACCES),
        (os.O_RDWR, RW, SHARED, BASE),
        (os.O_RDWR, RW, PRIVATE, BASE),
    ],
)
def test_a_mapping_may_what_its_descriptor_may(
    client: Client, path: Path, mode: int, prot: int, kind: int, ret: int
) -> None:
    fd = client.run(scripts.open_file, str(path), mode)
    assert map_file(client, fd, 2, prot, kind) == ret
    if ret == BASE:
        assert load(client, BASE, 3) == b"fff"


def test_mprotect_remembers_how_the_file_was_opened(client: Client, path: Path) -> None:
    fd = client.run(scripts.open_file, str(path), os.O_RDONLY)
    assert map_file(client, fd, 2, READ, SHARED) == BASE
    assert client.raw.call(raw.MPROTECT, BASE, PAGE, RW).ret == -errno.EACCES


def test_a_shared_mapping_reaches_the_file_and_a_private_one_does_not(client: Client, path: Path) -> None:
    fd = client.run(scripts.open_file, str(path), os.O_RDWR)
    assert map_file(client, fd, 2, RW, PRIVATE) == BASE
    store(client, BASE, b"private")
    assert client.raw.call(raw.MUNMAP, BASE, 2 * PAGE).ret == 0
    assert path.read_bytes() == b"f" * 2 * PAGE
    assert map_file(client, fd, 2, RW, SHARED) == BASE
    store(client, BASE + PAGE, b"shared")
    assert client.raw.call(raw.MSYNC, BASE, 2 * PAGE, 4).ret == 0
    assert path.read_bytes()[PAGE:].startswith(b"sharedff")
    store(client, BASE, b"last")
    assert client.raw.call(raw.EXIT_GROUP, 0).ret == 0
    assert path.read_bytes().startswith(b"lastff")


def test_without_a_descriptor(client: Client) -> None:
    assert client.raw.call(raw.MMAP, 0, PAGE, READ, PRIVATE, 5, 0).ret == -errno.EBADF


def test_requests_take_descriptors_in_order(client: Client, tmp_path: Path) -> None:
    fds = [client.run(scripts.memfd, letter * PAGE) for letter in (b"a", b"b", b"c")]
    maps = [raw.pack(raw.MMAP, BASE + index * PAGE, PAGE, READ, SHARED | FIXED, fd, 0) for index, fd in enumerate(fds)]
    anonymous = raw.pack(raw.MMAP, BASE + 8 * PAGE, PAGE, RW, PRIVATE | ANONYMOUS | FIXED, -1, 0)
    failing = raw.pack(raw.MMAP, BASE + 9 * PAGE, 0, READ, SHARED | FIXED, fds[0], 0)
    replies = client.raw.exchange(maps[0] + anonymous + maps[1] + failing + maps[2], [fds[0], fds[1], fds[0], fds[2]])
    assert [reply.ret for reply in replies] == [BASE, BASE + 8 * PAGE, BASE + PAGE, -errno.EINVAL, BASE + 2 * PAGE]
    assert [load(client, BASE + index * PAGE, 1) for index in range(3)] == [b"a", b"b", b"c"]


def test_brk_of_zero_is_the_break(client: Client) -> None:
    start = client.raw.call(raw.BRK, 0).ret
    assert client.raw.call(raw.BRK, start + 3 * PAGE).ret == start + 3 * PAGE
    store(client, start, b"heap")
    assert client.raw.call(raw.BRK, 0).ret == start + 3 * PAGE
    # A break that cannot be is answered by the one that is.
    assert client.raw.call(raw.BRK, start - PAGE).ret == start + 3 * PAGE
    assert client.raw.call(raw.BRK, start).ret == start
    catch(client, SIGSEGV)
    assert client.raw.call(raw.LOAD, start, 1).signo == SIGSEGV


def test_calls_with_inline_output(client: Client) -> None:
    map_pages(client, 4)
    touch(client, BASE + PAGE, PAGE, raw.WRITE)
    reply = client.raw.call(raw.MINCORE, BASE, 4 * PAGE, 0)
    assert (reply.ret, reply.data) == (0, b"\0\1\0\0")
    reply = client.raw.call(raw.PRLIMIT64, 0, 3, 0, 1)
    assert struct.unpack("<QQ", reply.data)[0] == 8 << 20
    assert client.raw.call(raw.PRLIMIT64, 0, 3, 1, 0, data=struct.pack("<QQ", 1 << 20, 1 << 21)) == raw.Reply(0)
    assert struct.unpack("<QQ", client.raw.call(raw.PRLIMIT64, 0, 3, 0, 1).data) == (1 << 20, 1 << 21)


def test_process_vm_copies_between_two_processes(daemon: Daemon, client: Client) -> None:
    other = attach(daemon)
    map_pages(client, 2)
    map_pages(other, 2)
    store(other, BASE + 10, b"remote bytes")
    local, remote = struct.pack("<QQ", BASE, 12), struct.pack("<QQ", BASE + 10, 12)
    assert client.raw.call(raw.PROCESS_VM_READV, other.pid, 1, 1, 1, 1, 0, data=local + remote).ret == 12
    assert load(client, BASE, 12) == b"remote bytes"
    store(client, BASE, b"LOCAL")
    local, remote = struct.pack("<QQ", BASE, 5), struct.pack("<QQ", BASE + 10, 5)
    assert client.raw.call(raw.PROCESS_VM_WRITEV, other.pid, 1, 1, 1, 1, 0, data=local + remote).ret == 5
    assert load(other, BASE + 10, 12) == b"LOCALe bytes"
    pair = local + remote
    assert client.raw.call(raw.PROCESS_VM_READV, 1 << 22, 1, 1, 1, 1, 0, data=pair).ret == -errno.ESRCH


def test_procread_pieces_ends_and_errors(daemon: Daemon, client: Client) -> None:
    whole = client.raw.call(raw.PROCREAD, 0, 65_536, data=b"meminfo")
    assert whole.ret == len(whole.data) > 0
    assert client.raw.call(raw.PROCREAD, 0, 10, data=b"meminfo").data == whole.data[:10]
    assert client.raw.call(raw.PROCREAD, 3, 10, data=b"meminfo").data == whole.data[3:13]
    assert client.raw.call(raw.PROCREAD, 1 << 20, 10, data=b"meminfo") == raw.Reply(0)
    assert client.raw.call(raw.PROCREAD, 0, 65_537, data=b"meminfo").ret == -errno.EINVAL
    for missing in (b"", b"nothing", b"999999/maps", b"self/nothing", b"../etc/passwd", b"\xff", b"self/maps\0x"):
        ret = client.raw.call(raw.PROCREAD, 0, 64, data=missing).ret
        assert ret in (-errno.ENOENT, -errno.ESRCH, -errno.ENOTDIR) or missing == b"", missing
    other = attach(daemon)
    mine = client.raw.call(raw.PROCREAD, 0, 65_536, data=b"self/maps")
    assert client.raw.call(raw.PROCREAD, 0, 65_536, data=f"{client.pid}/maps".encode()).data == mine.data
    assert other.raw.call(raw.PROCREAD, 0, 65_536, data=f"{client.pid}/maps".encode()).data == mine.data
    assert other.raw.call(raw.SETUID, 1000).ret == 0
    for private in ("maps", "pagemap"):
        path = f"{client.pid}/{private}".encode()
        assert other.raw.call(raw.PROCREAD, 0, 64, data=path).ret == -errno.EACCES


def test_the_ram_can_be_walked_by_hand(daemon: Daemon, client: Client) -> None:
    map_pages(client, 4)
    store(client, BASE + PAGE + 123, b"found by hand")
    walker = attach(daemon)
    cr3, _signo, _data, fds = walker.raw.call(raw.RAM, client.pid)
    (fd,) = fds
    assert cr3 % PAGE == 0
    assert cr3 != 0
    paddr = walker.run(scripts.walk, fd, cr3, BASE + PAGE + 123)
    assert walker.run(scripts.read_ram, fd, paddr, 13) == b"found by hand"
    assert walker.run(scripts.walk, fd, cr3, BASE) == -1
    at = (BASE // PAGE + 1) * 8
    (word,) = struct.unpack("<Q", client.raw.call(raw.PROCREAD, at, 8, data=b"self/pagemap").data)
    assert word >> 63
    assert word & (1 << 55) - 1 == paddr // PAGE
    store(client, BASE, b"now")
    assert walker.run(scripts.read_ram, fd, walker.run(scripts.walk, fd, cr3, BASE), 3) == b"now"
    # Nothing can be written through that descriptor.
    assert walker.run(scripts.write_ram, fd) == [errno.EBADF, errno.EINVAL, errno.EACCES]
    assert load(client, BASE, 3) == b"now"


def test_ram_of_nobody(client: Client) -> None:
    assert client.raw.call(raw.RAM, 1 << 22).ret == -errno.ESRCH
    assert client.raw.call(raw.RAM, 0).ret == -errno.ESRCH
