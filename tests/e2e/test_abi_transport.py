"""Datagrams, batches, records and their limits, by a client that knows docs/abi.md alone.

Sections: Transport; Records.
"""

from __future__ import annotations

import errno
import os

import pytest

from tests.e2e import scripts
from tests.e2e.raw_session import BASE, attach, map_pages
from tests.support import raw
from tests.support.client import Client
from tests.support.watched_daemon import Daemon


@pytest.fixture
def client(daemon: Daemon) -> Client:
    """A client that is connected and has not attached."""
    client = daemon.client()
    client.raw.connect(str(daemon.path))
    return client


@pytest.fixture
def attached(daemon: Daemon) -> Client:
    return attach(daemon)


def test_attach_returns_the_pid(client: Client) -> None:
    assert client.raw.call(raw.ATTACH, raw.VERSION, 0, 0).ret == client.pid
    assert client.raw.call(raw.GETPID).ret == client.pid


@pytest.mark.parametrize("version", [0, 2, 1 << 32 | 1])
def test_attach_with_another_version(client: Client, version: int) -> None:
    assert client.raw.call(raw.ATTACH, version, 0, 0).ret == -errno.EPROTO
    # The connection is not lost by it.
    assert client.raw.call(raw.ATTACH, raw.VERSION, 0, 0).ret == client.pid


@pytest.mark.parametrize("nr", [raw.GETPID, raw.LOAD, raw.OPEN, 0xFFFF_FFFF])
def test_the_first_request_must_be_attach(client: Client, nr: int) -> None:
    assert client.raw.exchange(raw.pack(nr)) == [raw.Reply(-errno.EBADMSG)]
    assert client.raw.is_ended()


def test_attach_may_be_the_first_of_a_batch(client: Client) -> None:
    replies = client.raw.exchange(raw.pack(raw.ATTACH, raw.VERSION, 0, 0) + raw.pack(raw.GETPID))
    assert [reply.ret for reply in replies] == [client.pid, client.pid]


@pytest.mark.parametrize("nr", [0, 1, 57, 461, 467, 0xFFF, 0x1FFF, 0xFFFF_FFFF])
def test_an_unknown_number(attached: Client, nr: int) -> None:
    assert attached.raw.call(nr).ret == -errno.ENOSYS
    assert attached.raw.call(raw.GETPID).ret == attached.pid


@pytest.mark.parametrize(
    "datagram",
    [
        b"\0" * 55,
        raw.pack(raw.GETPID, size=55),
        raw.pack(raw.GETPID, size=0),
        raw.pack(raw.GETPID, size=57),
        raw.pack(raw.GETPID, size=0xFFFF_FFFF),
        raw.pack(raw.GETPID) + raw.pack(raw.GETPID, size=64),
        raw.pack(raw.GETPID) + b"\x38",
        raw.pack(raw.LOAD, 0, 0) + b"\0" * 1,
        b"\0" * (raw.LIMIT + 1),
        raw.pack(raw.STORE, BASE, 1, data=b"x" * (raw.LIMIT - 56 + 1)),
    ],
)
@pytest.mark.parametrize("is_attached", [False, True])
def test_a_malformed_datagram_ends_the_connection(daemon: Daemon, datagram: bytes, is_attached: bool) -> None:
    client = daemon.client()
    if is_attached:
        client.raw.attach(str(daemon.path))
    else:
        client.raw.connect(str(daemon.path))
    assert client.raw.exchange(datagram) == [raw.Reply(-errno.EBADMSG)]
    assert client.raw.is_ended()
    # Another connection of the same process is served.
    client.me.new_raw()
    assert client.raw.attach(str(daemon.path)) == client.pid


def test_nothing_of_a_malformed_datagram_runs(daemon: Daemon, attached: Client) -> None:
    map_pages(attached, 1)
    assert attached.second.attach(str(daemon.path), attached.run(scripts.start_thread)) == attached.pid
    bad = raw.pack(raw.STORE, BASE, 1, data=b"x") + raw.pack(raw.GETPID, size=99)
    assert attached.raw.exchange(bad) == [raw.Reply(-errno.EBADMSG)]
    assert attached.raw.is_ended()
    assert attached.second.call(raw.LOAD, BASE, 1).data == b"\0"
    attached.run(scripts.end_thread)


def test_a_datagram_of_the_longest_length_is_served(attached: Client) -> None:
    count, rest = divmod(raw.LIMIT, 56)
    datagram = raw.pack(raw.GETPID) * (count - 1) + raw.pack(raw.GETPID, data=b"\0" * rest)
    assert len(datagram) == raw.LIMIT
    assert [reply.ret for reply in attached.raw.exchange(datagram)] == [attached.pid] * count


def test_replies_come_in_the_order_of_the_requests(attached: Client) -> None:
    map_pages(attached, 2)
    replies = attached.raw.exchange(
        raw.pack(raw.STORE, BASE, 5, data=b"hello")
        + raw.pack(9999)
        + raw.pack(raw.LOAD, BASE, 5)
        + raw.pack(raw.MUNMAP, BASE + 1, 4096)
        + raw.pack(raw.TOUCH, BASE, 8192, raw.WRITE)
        + raw.pack(raw.GETPID)
    )
    assert [reply.ret for reply in replies] == [5, -errno.ENOSYS, 5, -errno.EINVAL, 2, attached.pid]
    assert replies[2].data == b"hello"


def test_a_batch_ends_after_a_signal(attached: Client) -> None:
    map_pages(attached, 1)
    assert attached.raw.call(raw.RT_SIGACTION, 11, 2).ret == 0
    replies = attached.raw.exchange(
        raw.pack(raw.STORE, BASE, 1, data=b"a")
        + raw.pack(raw.LOAD, BASE + 4096, 1)
        + raw.pack(raw.STORE, BASE, 1, data=b"b")
        + raw.pack(raw.GETPID)
    )
    assert [(reply.ret, reply.signo) for reply in replies] == [(1, 0), (0, 11)]
    assert attached.raw.call(raw.LOAD, BASE, 1).data == b"a"


def test_a_child_that_inherited_the_socket_is_refused(attached: Client) -> None:
    map_pages(attached, 1)
    child = attached.fork("plain_fork")
    write = raw.pack(raw.STORE, BASE, 1, data=b"x")
    assert child.raw.exchange(write * 2) == [raw.Reply(-errno.EPERM)] * 2
    assert child.raw.call(raw.EXIT_GROUP).ret == -errno.EPERM
    assert child.raw.call(raw.CLONE).ret == -errno.EPERM
    assert child.raw.exchange(raw.pack(raw.GETPID, size=1)) == [raw.Reply(-errno.EPERM)]
    assert attached.raw.call(raw.LOAD, BASE, 1).data == b"\0"
    assert attached.raw.call(raw.GETPID).ret == attached.pid


def test_descriptors_that_nobody_takes_are_closed(daemon: Daemon, attached: Client) -> None:
    held = f"/proc/{daemon.process.pid}/fd"
    assert attached.raw.call(raw.GETPID).ret == attached.pid
    before = len(os.listdir(held))
    fd = attached.run(scripts.memfd, b"x" * 4096)
    assert attached.raw.call(raw.GETPID, fds=[fd] * 200).ret == attached.pid
    assert attached.raw.call(raw.GETPID).ret == attached.pid
    assert len(os.listdir(held)) == before
