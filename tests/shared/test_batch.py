"""Batches: one datagram where it fits, replies in order, an early end after a signal."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Callable

import pytest

from shared import wire
from shared.client import KerneldGone, Process, SigInfo
from shared.uapi.syscalls import Access, Nr
from shared.wire import Reply, Request
from tests.shared.attached import Attached
from tests.shared.fake_kerneld import Said, Script, signalled


def echo(request: Request, _fds: list[int]) -> Said:
    """Answer each request with its first argument, a load with bytes."""
    return Said(request.args[0], bytes(request.args[1]) if request.nr == Nr.LOAD else b"")


def test_a_batch_is_one_datagram_with_replies_in_order(attached: Attached) -> None:
    fake, process = attached(echo)
    with process.batch() as batch:
        batch.store(1, b"abc")
        batch.touch(2, 4096, Access.WRITE)
        batch.load(3, 2)
        batch.call(Nr.MUNMAP, 4, 4096)
        assert fake.datagrams == []
    assert fake.datagrams == [
        [
            Request(Nr.STORE, (1, 3, 0, 0, 0, 0), b"abc"),
            Request(Nr.TOUCH, (2, 4096, 1, 0, 0, 0)),
            Request(Nr.LOAD, (3, 2, 0, 0, 0, 0)),
            Request(Nr.MUNMAP, (4, 4096, 0, 0, 0, 0)),
        ]
    ]
    assert batch.replies == [Reply(1), Reply(2), Reply(3, 0, b"\0\0"), Reply(4)]


def test_a_long_batch_is_several_datagrams_within_the_limits(attached: Attached) -> None:
    fake, process = attached(echo)
    with process.batch() as batch:
        for number in range(5000):
            batch.call(Nr.MUNMAP, number)
        for number in range(5000, 5020):
            batch.load(number, wire.MAX_INLINE)
        for number in range(5020, 5023):
            batch.store(number, bytes(wire.MAX_INLINE))
    assert [reply.ret for reply in batch.replies] == list(range(5023))
    for datagram in fake.datagrams:
        assert sum(56 + len(request.data) for request in datagram) <= wire.MAX_DATAGRAM
        loads = sum(request.args[1] for request in datagram if request.nr == Nr.LOAD)
        assert loads + 40 * len(datagram) <= wire.MAX_REPLY
    assert len(fake.datagrams) <= 3 + 4 + 3


def test_descriptors_go_with_their_request(attached: Attached) -> None:
    taken: list[str] = []

    def script(request: Request, fds: list[int]) -> Said:
        if request.nr == Nr.MMAP:
            fd = fds.pop(0)
            taken.append(os.readlink(f"/proc/self/fd/{fd}"))
            os.close(fd)
        return Said(0)

    _fake, process = attached(script)
    with open("/dev/null", "rb") as null, open("/dev/zero", "rb") as zero, process.batch() as batch:
        batch.call(Nr.MMAP, fds=(null.fileno(),))
        batch.call(Nr.GETPID)
        batch.call(Nr.MMAP, fds=(zero.fileno(),))
    assert taken == ["/dev/null", "/dev/zero"]


def test_a_failed_request_is_a_reply_and_the_rest_goes_on(attached: Attached) -> None:
    _fake, process = attached(lambda request, _fds: Said(-errno.EINVAL if request.nr == Nr.MUNMAP else 5))
    with process.batch() as batch:
        batch.call(Nr.MUNMAP, 1)
        batch.call(Nr.GETPID)
    assert [reply.ret for reply in batch.replies] == [-errno.EINVAL, 5]


def _fault_at_two(request: Request, _fds: list[int]) -> Said:
    return signalled(signal.SIGSEGV, fatal=False, ret=1, address=0x2000) if request.args[0] == 2 else Said(0)


def test_a_caught_signal_ends_the_batch_and_the_replies(attached: Attached) -> None:
    fake, process = attached(_fault_at_two)
    caught: list[SigInfo] = []
    process.sigaction(signal.SIGSEGV, lambda _signo, info: caught.append(info))
    with process.batch() as batch:
        for address in range(5):
            batch.touch(address, 1)
        batch.store(9, bytes(wire.MAX_INLINE))
        batch.store(9, bytes(wire.MAX_INLINE))
    assert [(reply.ret, reply.signo) for reply in batch.replies] == [(0, 0), (0, 0), (1, signal.SIGSEGV)]
    assert caught == [batch.replies[2].siginfo]
    assert len(fake.datagrams) == 2


def test_the_replies_are_there_when_the_handler_raises(attached: Attached) -> None:
    _fake, process = attached(_fault_at_two)

    def handler(_signo: int, _info: SigInfo) -> None:
        raise LookupError

    process.sigaction(signal.SIGSEGV, handler)
    batch = process.batch()
    for address in range(5):
        batch.touch(address, 1)
    with pytest.raises(LookupError):
        batch.send()
    assert len(batch.replies) == 3


def test_a_fatal_signal_in_a_batch_is_a_real_death(attached_apart: Callable[[Script], Process]) -> None:
    def script(request: Request, _fds: list[int]) -> Said:
        return signalled(signal.SIGBUS, fatal=True) if request.nr == Nr.TOUCH else Said(1)

    process = attached_apart(script)
    pid = os.fork()
    if pid == 0:
        try:
            with Process.attach(process.socket_path).batch() as batch:
                batch.call(Nr.GETPID)
                batch.touch(0, 1)
        finally:
            os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGBUS


def test_nothing_is_sent_when_the_block_raises_or_is_empty(attached: Attached) -> None:
    fake, process = attached(echo)
    with process.batch() as batch:
        pass
    assert batch.replies == []
    with contextlib.suppress(LookupError), process.batch() as batch:
        batch.call(Nr.GETPID)
        raise LookupError
    assert batch.replies == []
    assert fake.datagrams == []


def test_what_fits_no_datagram_is_refused_before_anything_is_sent(attached: Attached) -> None:
    fake, process = attached(echo)
    batch = process.batch()
    with pytest.raises(ValueError, match="at most"):
        batch.load(0, wire.MAX_INLINE + 1)
    with pytest.raises(ValueError, match="at most"):
        batch.store(0, bytes(wire.MAX_INLINE + 1))
    for nr, args, data, fds in (
        (Nr.MUNMAP, (), bytes(wire.MAX_DATAGRAM), range(0)),
        (Nr.MINCORE, (0, (wire.MAX_REPLY + 1) * 4096), b"", range(0)),
        (Nr.MUNMAP, (), b"", range(wire.MAX_FDS + 1)),
    ):
        with pytest.raises(ValueError, match="does not fit"):
            batch.call(nr, *args, data=data, fds=fds)
    batch.send()
    assert fake.datagrams == []


def test_a_refused_datagram_is_the_end_of_the_connection(attached: Attached) -> None:
    """docs/abi.md: one reply with -EBADMSG, whatever the number of requests."""
    answers = iter([wire.pack_reply(-errno.EBADMSG), b""])
    _fake, process = attached(lambda request, _fds: Said(1, raw=None if request.nr == Nr.ATTACH else next(answers)))
    batch = process.batch()
    batch.call(1)
    batch.call(1)
    with pytest.raises(KerneldGone, match="Bad message"):
        batch.send()


def test_a_batch_ends_with_its_exit(attached: Attached) -> None:
    answers = iter([wire.pack_reply(0), b""])
    _fake, process = attached(lambda request, _fds: Said(1, raw=None if request.nr == Nr.ATTACH else next(answers)))
    with process.batch() as batch:
        batch.call(Nr.EXIT_GROUP)
        batch.call(Nr.GETPID)
    assert batch.replies == [Reply(0)]
