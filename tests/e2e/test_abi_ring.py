"""The ring, by a client that knows docs/abi.md alone. Section: Ring."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import random
from collections.abc import Iterator

import pytest

from tests.e2e.raw_session import BASE, PAGE, attach
from tests.support import raw
from tests.support.raw_ring import (
    ANSWERS,
    REQUEST_NUMBER,
    REQUESTS,
    RING,
    RING_BELL,
    RING_BYTES,
    RawRing,
)
from tests.support.watched_daemon import Daemon

GETPID = raw.pack(raw.GETPID)
MAP = raw.pack(raw.MMAP, BASE, 32 * PAGE, 3, 0x32, -1, 0)
SIGSEGV = 11


@pytest.fixture
def thread(daemon: Daemon) -> Iterator[raw.RawThread]:
    """This process, attached."""
    thread = raw.RawThread()
    assert thread.attach(str(daemon.path)) == os.getpid()
    yield thread
    thread.close()


@pytest.fixture
def ring(thread: raw.RawThread) -> Iterator[RawRing]:
    ring = RawRing(thread)
    yield ring
    ring.close()


def test_a_request_in_the_ring_is_answered_there_before_the_bell(ring: RawRing) -> None:
    assert ring.exchange(GETPID) == [raw.Reply(os.getpid())]
    assert ring.exchange(raw.pack(461)) == [raw.Reply(-errno.ENOSYS)]


def test_the_records_are_those_of_the_socket(ring: RawRing, thread: raw.RawThread) -> None:
    batch = MAP + raw.pack(raw.STORE, BASE, 3, data=b"abc") + raw.pack(raw.LOAD, BASE, 3)
    assert ring.exchange(batch) == [raw.Reply(BASE), raw.Reply(3), raw.Reply(3, 0, b"abc")]
    assert thread.call(raw.LOAD, BASE, 3) == raw.Reply(3, 0, b"abc")


def test_a_signal_is_in_the_ring_and_a_fatal_one_ends_the_connection(ring: RawRing, thread: raw.RawThread) -> None:
    assert ring.exchange(raw.pack(raw.RT_SIGACTION, SIGSEGV, 2)) == [raw.Reply(0)]
    (reply,) = ring.exchange(raw.pack(raw.LOAD, BASE, 1))
    assert (reply.ret, reply.signo, reply.siginfo) == (0, SIGSEGV, raw.Signal(raw.MAPERR, 0, BASE))
    assert ring.exchange(raw.pack(raw.RT_SIGACTION, SIGSEGV, 0)) == [raw.Reply(0)]
    ring.put(raw.pack(raw.LOAD, BASE, 1))
    assert ring.bell() == []
    assert ring.answer[0].siginfo.fatal == 1


def test_an_answer_that_does_not_fit_comes_by_the_socket_before_the_bells(ring: RawRing, thread: raw.RawThread) -> None:
    assert ring.exchange(MAP) == [raw.Reply(BASE)]
    length = RING_BYTES - ANSWERS - 16
    (reply,) = ring.exchange(raw.pack(raw.LOAD, BASE, length))
    assert reply.data == bytes(length)
    ring.put(raw.pack(raw.LOAD, BASE, length + 1))
    assert ring.bell() == [raw.Reply(length + 1, 0, bytes(length + 1))]
    assert ring.answer == []
    assert thread.receive() == [raw.Reply(0)]


def test_descriptors_come_by_the_socket(ring: RawRing, thread: raw.RawThread) -> None:
    ring.put(raw.pack(raw.RAM, os.getpid()))
    (reply,) = ring.bell()
    assert len(reply.fds) == 1
    os.close(*reply.fds)
    assert ring.answer == []
    assert thread.receive() == [raw.Reply(0)]


def test_a_request_in_the_ring_has_no_descriptors(ring: RawRing) -> None:
    assert ring.exchange(raw.pack(raw.MMAP, BASE, PAGE, 3, 2, 0, 0)) == [raw.Reply(-errno.EBADF)]


@pytest.mark.parametrize("size", [0, 1, 55, 57, ANSWERS - REQUESTS + 1, 1 << 31, (1 << 64) - 1])
def test_a_size_that_lies_ends_its_own_connection(daemon: Daemon, ring: RawRing, size: int) -> None:
    other = attach(daemon)
    ring.put(GETPID, size)
    assert ring.bell() == []
    assert ring.answer == [raw.Reply(-errno.EBADMSG)]
    assert other.raw.call(raw.GETPID).ret == other.pid


def test_a_number_may_be_any_that_is_not_the_last(ring: RawRing) -> None:
    ring.words[REQUEST_NUMBER] = (1 << 64) - 2
    assert ring.exchange(GETPID) == [raw.Reply(os.getpid())]
    ring.words[REQUEST_NUMBER] = 6
    assert ring.exchange(GETPID) == [raw.Reply(os.getpid())]


def test_the_bell_without_a_request(ring: RawRing, thread: raw.RawThread) -> None:
    assert ring.bell() == [raw.Reply(0)]
    assert thread.exchange(raw.pack(RING_BELL) + GETPID) == [raw.Reply(0), raw.Reply(os.getpid())]


def test_a_second_ring_replaces_the_first_but_not_from_within(ring: RawRing, thread: raw.RawThread) -> None:
    assert ring.exchange(raw.pack(RING)) == [raw.Reply(-errno.EBUSY)]
    second = RawRing(thread)
    assert second.exchange(GETPID) == [raw.Reply(os.getpid())]
    ring.put(GETPID)
    assert ring.bell() == [raw.Reply(0)]
    with pytest.raises(AssertionError):
        _ = ring.answer
    second.close()


def test_a_ring_is_for_who_has_attached(daemon: Daemon) -> None:
    with contextlib.closing(raw.RawThread()) as thread:
        thread.connect(str(daemon.path))
        assert thread.exchange(raw.pack(RING)) == [raw.Reply(-errno.EBADMSG)]
    with contextlib.closing(raw.RawThread()) as thread:
        thread.connect(str(daemon.path))
        first, second = thread.exchange(raw.pack(raw.ATTACH, raw.VERSION, 0, 0) + raw.pack(RING))
        assert (first.ret, second.ret, len(first.fds)) == (os.getpid(), RING_BYTES, 1)
        os.close(*first.fds)


def test_the_ring_keeps_its_size(ring: RawRing) -> None:
    for size in (0, PAGE, RING_BYTES - 1, RING_BYTES + 1):
        with pytest.raises(PermissionError):
            os.ftruncate(ring.fd, size)
    with pytest.raises(PermissionError):
        os.posix_fallocate(ring.fd, RING_BYTES, PAGE)


def test_a_child_that_maps_the_ring_all_the_same_is_taken_for_its_parent(ring: RawRing, thread: raw.RawThread) -> None:
    """By the socket it is a stranger, and stays one. In memory that it got from its parent it harms only its parent."""
    assert ring.exchange(MAP) == [raw.Reply(BASE)]
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with mmap.mmap(ring.fd, RING_BYTES):
                ring.put(raw.pack(raw.MUNMAP, BASE, PAGE))
                # The bell is a stranger's: it gets EPERM, and the request of the parent's ring is served.
                status = 0 if ring.bell() == [raw.Reply(-errno.EPERM)] else 2
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert ring.answer == [raw.Reply(0)]
    assert ring.exchange(raw.pack(raw.MINCORE, BASE, PAGE)) == [raw.Reply(-errno.ENOMEM)]
    assert ring.exchange(GETPID) == [raw.Reply(os.getpid())]


def test_exit_is_answered_in_the_ring(ring: RawRing) -> None:
    ring.put(raw.pack(raw.EXIT_GROUP, 0))
    assert ring.bell() == []
    assert ring.answer == [raw.Reply(0)]


@pytest.mark.parametrize("seed", range(3))
def test_whatever_is_in_a_ring_harms_nobody_else(daemon: Daemon, seed: int) -> None:
    """Random bytes, sizes and numbers, some of them good requests, changed again while they are served."""
    chosen, other = random.Random(seed), attach(daemon)
    for _ in range(20):
        with contextlib.closing(raw.RawThread()) as thread:
            if thread.attach(str(daemon.path)) != os.getpid():
                continue
            ring = RawRing(thread)
            for _ in range(20):
                good = raw.pack(chosen.choice((raw.GETPID, raw.LOAD, raw.TOUCH, 461)), BASE, chosen.randrange(70_000))
                ring.put(chosen.choice((good, good * 9, chosen.randbytes(300))), chosen.choice((None, None, 56, 300)))
                ring.words[REQUEST_NUMBER] += chosen.randrange(3)
                try:
                    if not ring.bell():
                        break
                except BrokenPipeError:
                    break
                ring.put(chosen.randbytes(100), chosen.randrange(1 << 64))
            ring.close()
    assert other.raw.call(raw.GETPID).ret == other.pid
