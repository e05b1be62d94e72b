"""The rules of docs/abi.md's Transport, over real sockets."""

from __future__ import annotations

import errno
import os
import signal
import socket

import pytest

from kerneld.errors import KernelBug
from shared import wire
from shared.uapi.syscalls import Nr
from tests.server.fakes import NR_BUG, NR_LONG, NR_PANIC, Client, ServerUnderTest, open_fds

GETPID = wire.pack_request(Nr.GETPID)
ATTACH = wire.pack_request(Nr.ATTACH, (1, 0, 0))
MALFORMED = [
    pytest.param(b"", id="empty"),
    pytest.param(GETPID[:-1], id="cut short"),
    pytest.param(wire.REQUEST.pack(55, Nr.GETPID, *[0] * 6), id="size under a request"),
    pytest.param(wire.REQUEST.pack(57, Nr.GETPID, *[0] * 6), id="size past the end"),
    pytest.param(GETPID + b"\0" * 55, id="a second request cut short"),
    pytest.param(wire.pack_request(Nr.STORE, (0, 0), b"\0" * (wire.MAX_DATAGRAM - 55)), id="over the limit"),
]


def in_child(client: Client, datagram: bytes) -> None:
    """Send a datagram from a forked child over the connection it inherited, and wait for the child."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            client.socket.send(datagram)
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0


def test_attach_then_call(server: ServerUnderTest) -> None:
    client = server.connect()
    assert client.attach() == os.getpid()
    assert client.call(Nr.GETPID) == wire.Reply(os.getpid())


def test_attach_leads_a_batch(server: ServerUnderTest) -> None:
    replies = server.connect().exchange(ATTACH, GETPID, GETPID)
    assert [reply.ret for reply in replies] == [os.getpid()] * 3


def test_second_attach_is_einval_and_the_rest_runs(server: ServerUnderTest) -> None:
    client = server.attached()
    assert client.attach() == -errno.EINVAL
    assert [reply.ret for reply in client.exchange(ATTACH, GETPID)] == [-errno.EINVAL, os.getpid()]
    assert len(server.kernel.processes[os.getpid()].threads) == 1


def test_refused_attach_runs_nothing_and_may_be_tried_again(server: ServerUnderTest) -> None:
    client = server.connect()
    wrong = wire.pack_request(Nr.ATTACH, (2, 0, 0))
    assert [reply.ret for reply in client.exchange(wrong, GETPID)] == [-errno.EPROTO] * 2
    assert server.kernel.requests == []
    assert client.attach() == os.getpid()


@pytest.mark.parametrize("datagram", MALFORMED)
@pytest.mark.parametrize("attached", [False, True])
def test_malformed_is_ebadmsg_and_the_end(server: ServerUnderTest, datagram: bytes, attached: bool) -> None:
    client = server.attached() if attached else server.connect()
    assert client.exchange(datagram) == [wire.Reply(-errno.EBADMSG)]
    assert client.is_ended()
    assert server.kernel.requests == []
    assert server.kernel.processes == {}


def test_longest_datagram_is_served(server: ServerUnderTest) -> None:
    data = b"\0" * (wire.MAX_DATAGRAM - wire.REQUEST.size)
    assert server.attached().call(Nr.STORE, 0, len(data), data=data).ret == len(data)


@pytest.mark.parametrize("requests", [GETPID, GETPID + ATTACH])
def test_first_request_must_be_attach(server: ServerUnderTest, requests: bytes) -> None:
    client = server.connect()
    assert client.exchange(requests) == [wire.Reply(-errno.EBADMSG)]
    assert client.is_ended()


@pytest.mark.parametrize(
    ("datagram", "count"), [(GETPID, 1), (GETPID * 3, 3), (ATTACH, 1), *((param.values[0], 1) for param in MALFORMED)]
)
def test_another_sender_is_eperm_and_nothing_else(server: ServerUnderTest, datagram: bytes, count: int) -> None:
    client = server.attached()
    in_child(client, datagram)
    server.turn()
    assert client.receive() == [wire.Reply(-errno.EPERM)] * count
    assert server.kernel.requests == []
    assert client.call(Nr.GETPID).ret == os.getpid()


def test_fatal_signal_ends_batch_and_connection(server: ServerUnderTest) -> None:
    client = server.attached()
    replies = client.exchange(GETPID, wire.pack_request(Nr.TOUCH), GETPID)
    assert replies[0].ret == os.getpid()
    assert replies[1:] == [wire.Reply(0, signal.SIGSEGV, replies[1].data, wire.SigInfo(1, True, 0x1000))]
    assert client.is_ended()


def test_caught_signal_ends_the_batch_alone(server: ServerUnderTest) -> None:
    client = server.attached()
    replies = client.exchange(GETPID, wire.pack_request(Nr.BRK), GETPID)
    assert [reply.signo for reply in replies] == [0, signal.SIGBUS]
    assert client.call(Nr.GETPID).ret == os.getpid()


@pytest.mark.parametrize("nr", [Nr.EXIT, Nr.EXIT_GROUP])
def test_exit_is_answered_and_closed(server: ServerUnderTest, nr: int) -> None:
    client = server.attached()
    assert client.exchange(wire.pack_request(nr), GETPID) == [wire.Reply(0)]
    assert client.is_ended()
    assert server.kernel.processes == {}


def test_exit_of_a_thread_leaves_the_others_and_exit_group_takes_them(server: ServerUnderTest) -> None:
    first, second, third = server.attached(tid=1), server.attached(tid=2), server.attached(tid=3)
    assert second.call(Nr.EXIT).ret == 0
    assert second.is_ended()
    assert server.kernel.exited == [2]
    assert first.call(Nr.GETPID).ret == os.getpid()
    assert third.call(Nr.EXIT_GROUP).ret == 0
    assert third.is_ended()
    assert first.is_ended()


def test_execve_takes_the_other_threads(server: ServerUnderTest) -> None:
    first, second, third = server.attached(tid=1), server.attached(tid=2), server.attached(tid=3)
    assert second.call(Nr.EXECVE).ret == 0
    assert first.is_ended()
    assert third.is_ended()
    assert second.call(Nr.GETPID).ret == os.getpid()


def test_broken_machine_stops_the_loop(server: ServerUnderTest) -> None:
    client = server.attached()
    with pytest.raises(KernelBug, match="a frame has no owner"):
        client.exchange(wire.pack_request(NR_PANIC))


def test_six_full_loads_fit_and_the_seventh_is_refused_before_it_runs(server: ServerUnderTest) -> None:
    client = server.attached()
    load = wire.pack_request(Nr.LOAD, (0, wire.MAX_INLINE))
    replies = client.exchange(*[load] * 7, GETPID)
    assert [len(reply.data) for reply in replies[:6]] == [wire.MAX_INLINE] * 6
    assert [reply.ret for reply in replies[6:]] == [-errno.EMSGSIZE, os.getpid()]
    assert len(server.kernel.requests) == 7


def test_small_replies_fit_behind_full_loads(server: ServerUnderTest) -> None:
    load = wire.pack_request(Nr.LOAD, (0, wire.MAX_INLINE))
    count = (wire.MAX_DATAGRAM - 6 * wire.REQUEST.size) // wire.REQUEST.size
    replies = server.attached().exchange(*[load] * 6, *[GETPID] * count)
    assert len(replies) == 6 + count
    assert {reply.ret for reply in replies[6:]} == {os.getpid()}
    assert [reply.ret for reply in replies[:6]] == [wire.MAX_INLINE] * 4 + [-errno.EMSGSIZE] * 2


def test_long_answer_that_was_not_foreseen_is_emsgsize(server: ServerUnderTest) -> None:
    client = server.attached()
    most = wire.MAX_REPLY - wire.REPLY.size
    assert len(client.call(NR_LONG, most).data) == most
    assert client.call(NR_LONG, most + 1) == wire.Reply(-errno.EMSGSIZE)
    long = wire.pack_request(NR_LONG, (300_000,))
    assert [len(reply.data) for reply in client.exchange(long, long, GETPID)] == [300_000, 0, 0]


def test_unforeseen_failure_costs_that_connection_only(server: ServerUnderTest) -> None:
    other = server.attached(tid=1)
    client = server.attached(tid=2)
    assert client.exchange(wire.pack_request(NR_BUG)) == []
    assert other.call(Nr.GETPID).ret == os.getpid()
    assert server.kernel.exited == [2]


def test_fds_that_are_not_consumed_are_closed(server: ServerUnderTest) -> None:
    client = server.attached()
    with open(os.devnull, "rb") as file:
        before = open_fds()
        client.exchange(GETPID, fds=[file.fileno()] * wire.MAX_FDS)
        assert open_fds() == before
        client.exchange(wire.pack_request(Nr.MMAP), wire.pack_request(Nr.MMAP), fds=[file.fileno()] * 5)
        assert open_fds() == before + 2
    for fd in server.kernel.consumed_fds:
        assert not os.get_inheritable(fd)
        os.close(fd)


@pytest.mark.parametrize("datagram", [b"x", b"", GETPID])
def test_fds_of_refused_datagrams_are_closed(server: ServerUnderTest, datagram: bytes) -> None:
    with open(os.devnull, "rb") as file:
        before = open_fds()
        client = server.connect()
        assert client.exchange(datagram, fds=[file.fileno()] * 3) == [wire.Reply(-errno.EBADMSG)]
        client.socket.close()
        assert open_fds() == before


def test_fds_of_another_sender_and_of_a_bug_are_closed(server: ServerUnderTest) -> None:
    client = server.attached()
    with open(os.devnull, "rb") as file:
        before = open_fds()
        client.send(wire.pack_request(NR_BUG), fds=[file.fileno()] * 3)
        server.turn()
        assert client.is_ended()
        client.socket.close()
        # The connection of the server and its pidfd have gone too.
        assert open_fds() == before - 3


def test_answer_fds_arrive_and_are_closed(server: ServerUnderTest) -> None:
    client = server.attached()
    before = open_fds()
    client.send(wire.pack_request(Nr.RAM) * 2)
    server.turn()
    answer, fds, _flags, _address = socket.recv_fds(client.socket, 4096, 8)
    assert len(wire.unpack_replies(answer)) == 2
    assert len(fds) == 2
    for fd in fds:
        os.close(fd)
    assert open_fds() == before


def test_more_fds_than_an_answer_carries_are_emsgsize(server: ServerUnderTest) -> None:
    client = server.attached()
    before = open_fds()
    replies = client.exchange(*[wire.pack_request(Nr.RAM)] * 300)
    assert [reply.ret for reply in replies] == [0] * (wire.MAX_FDS - 1) + [-errno.EMSGSIZE] * (301 - wire.MAX_FDS)
    assert open_fds() == before


@pytest.mark.parametrize("behind", [b"", wire.pack_request(Nr.GETPID)], ids=["alone", "in a batch"])
def test_who_does_not_read_gets_no_more_fds(server: ServerUnderTest, behind: bytes) -> None:
    """Those on their way are in nobody's table, and on no account but ours."""
    client = server.attached()
    before = open_fds()
    for _ in range(3):
        client.send(wire.pack_request(Nr.RAM) + behind)
        server.turn()
    rets = []
    for nr_fds in (1, 0, 0):
        answer, fds, _flags, _address = socket.recv_fds(client.socket, 4096, 8)
        assert len(fds) == nr_fds
        rets.append(wire.unpack_replies(answer)[0].ret)
        for fd in fds:
            os.close(fd)
    assert rets == [0, -errno.EMSGSIZE, -errno.EMSGSIZE]
    assert client.call(Nr.RAM).ret == 0
    assert open_fds() == before


def test_answer_fds_are_closed_when_the_client_is_gone(server: ServerUnderTest) -> None:
    client = server.attached()
    client.send(wire.pack_request(Nr.RAM) * 2)
    client.socket.close()
    before = open_fds()
    server.turn()
    # The server's end and the pidfd.
    assert open_fds() == before - 2
    assert server.kernel.processes == {}
