"""What the tests of docs/abi.md share: an attached raw client, and memory of its own at a known address."""

from __future__ import annotations

from tests.support import raw
from tests.support.client import Client
from tests.support.watched_daemon import Daemon

PAGE = 4096
BASE = 0x10_0000_0000
NONE, READ, RW = 0, 1, 3
PRIVATE, SHARED, FIXED, ANONYMOUS = 2, 1, 0x10, 0x20
SIGINT, SIGBUS, SIGKILL, SIGSEGV = 2, 7, 9, 11
CAUGHT = 2


def attach(daemon: Daemon) -> Client:
    """Return a new attached raw client."""
    client = daemon.client()
    assert client.raw.attach(str(daemon.path)) == client.pid
    return client


def map_pages(client: Client, pages: int, prot: int = RW, address: int = BASE) -> int:
    """Map private anonymous pages."""
    flags = PRIVATE | ANONYMOUS | FIXED
    assert client.raw.call(raw.MMAP, address, pages * PAGE, prot, flags, -1, 0).ret == address
    return address


def map_file(client: Client, fd: int, pages: int, prot: int = RW, kind: int = SHARED) -> int:
    """Map a file that the client has open, and return ret."""
    ret: int = client.raw.call(raw.MMAP, BASE, pages * PAGE, prot, kind | FIXED, fd, 0, fds=[fd]).ret
    return ret


def store(client: Client, address: int, data: bytes) -> raw.Reply:
    """Store bytes."""
    reply: raw.Reply = client.raw.call(raw.STORE, address, len(data), data=data)
    return reply


def load(client: Client, address: int, length: int) -> bytes:
    """Load bytes, all of them."""
    reply: raw.Reply = client.raw.call(raw.LOAD, address, length)
    assert (reply.ret, reply.signo) == (length, 0)
    return reply.data


def touch(client: Client, address: int, length: int, access: int) -> raw.Reply:
    """Touch pages."""
    reply: raw.Reply = client.raw.call(raw.TOUCH, address, length, access)
    return reply


def catch(client: Client, *signos: int) -> None:
    """Have signals reported instead of ending the process."""
    for signo in signos:
        assert client.raw.call(raw.RT_SIGACTION, signo, CAUGHT).ret == 0
