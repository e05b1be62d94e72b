"""load, store and touch: limits, partial counts, and the signals that stop them.

Sections of docs/abi.md: Requests of this machine; Records (a reply with a signal).
"""

from __future__ import annotations

import errno

import pytest

from tests.e2e import scripts
from tests.e2e.raw_session import (
    BASE,
    NONE,
    PAGE,
    PRIVATE,
    READ,
    RW,
    SHARED,
    SIGBUS,
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

MOST = 65_536
END = 1 << 64


@pytest.fixture
def client(daemon: Daemon) -> Client:
    client = attach(daemon)
    catch(client, SIGSEGV, SIGBUS)
    return client


def test_what_was_stored_is_loaded_across_pages(client: Client) -> None:
    map_pages(client, 18)
    data = bytes(range(256)) * 256
    assert store(client, BASE + 4000, data) == raw.Reply(MOST)
    assert load(client, BASE + 4000, MOST) == data
    assert load(client, BASE, 4000) == b"\0" * 4000


def test_the_longest_access_and_one_byte_more(client: Client) -> None:
    map_pages(client, 20)
    assert client.raw.call(raw.LOAD, BASE, MOST).ret == MOST
    assert client.raw.call(raw.LOAD, BASE, MOST + 1).ret == -errno.EINVAL
    assert client.raw.call(raw.STORE, BASE, MOST + 1, data=b"x" * (MOST + 1)).ret == -errno.EINVAL
    assert load(client, BASE, 1) == b"\0"


def test_a_length_that_disagrees_with_the_bytes(client: Client) -> None:
    map_pages(client, 1)
    assert client.raw.call(raw.STORE, BASE, 2, data=b"xyz").ret == -errno.EINVAL
    assert client.raw.call(raw.STORE, BASE, 4, data=b"xyz").ret == -errno.EINVAL
    assert load(client, BASE, 4) == b"\0" * 4


def test_nothing_at_all_is_zero_wherever(client: Client) -> None:
    assert client.raw.call(raw.LOAD, 0, 0) == raw.Reply(0)
    assert client.raw.call(raw.STORE, 0, 0) == raw.Reply(0)
    assert touch(client, 0, 0, raw.WRITE) == raw.Reply(0)


@pytest.mark.parametrize("nr", [raw.LOAD, raw.STORE, raw.TOUCH])
def test_a_range_that_runs_over_the_top_stops_at_its_first_page(client: Client, nr: int) -> None:
    reply = client.raw.call(nr, END - 4, 8, raw.READ, data=b"12345678" if nr == raw.STORE else b"")
    assert (reply.ret, reply.signo, reply.siginfo) == (0, SIGSEGV, (raw.MAPERR, 0, END - 4))


@pytest.mark.parametrize("length", [1 << 60, END - BASE, END - BASE + 1, END - 1])
def test_a_touch_of_any_length_stops_at_the_first_signal(client: Client, length: int) -> None:
    map_pages(client, 2)
    reply = touch(client, BASE, length, raw.WRITE)
    assert (reply.ret, reply.signo, reply.siginfo) == (2, SIGSEGV, (raw.MAPERR, 0, BASE + 2 * PAGE))


def test_an_unknown_access(client: Client) -> None:
    map_pages(client, 1)
    assert touch(client, BASE, PAGE, 3).ret == -errno.EINVAL


@pytest.mark.parametrize("nr", [raw.LOAD, raw.STORE, raw.TOUCH])
def test_no_mapping_is_maperr_at_the_page_that_stopped_it(client: Client, nr: int) -> None:
    map_pages(client, 2)
    data = b"d" * 2 * PAGE if nr == raw.STORE else b""
    reply = client.raw.call(nr, BASE + 100, 2 * PAGE, raw.READ, data=data)
    assert (reply.ret, reply.signo) == (2 if nr == raw.TOUCH else 2 * PAGE - 100, SIGSEGV)
    assert reply.siginfo == raw.Signal(raw.MAPERR, 0, BASE + 2 * PAGE)
    if nr == raw.STORE:
        assert load(client, BASE, 2 * PAGE) == b"\0" * 100 + b"d" * (2 * PAGE - 100)


@pytest.mark.parametrize(
    ("prot", "access", "allowed"),
    [
        (NONE, raw.READ, False),
        (NONE, raw.WRITE, False),
        (READ, raw.READ, True),
        (READ, raw.WRITE, False),
        (READ, raw.FETCH, False),
        (RW, raw.WRITE, True),
        (RW, raw.FETCH, False),
        (5, raw.FETCH, True),
        (5, raw.WRITE, False),
    ],
)
def test_rights(client: Client, prot: int, access: int, allowed: bool) -> None:
    map_pages(client, 1)
    map_pages(client, 1, prot, BASE + PAGE)
    reply = touch(client, BASE + (0 if access != raw.FETCH else PAGE), (2 if access != raw.FETCH else 1) * PAGE, access)
    before = 0 if access == raw.FETCH else 1
    if allowed:
        assert reply == raw.Reply(before + 1)
    else:
        assert (reply.ret, reply.signo) == (before, SIGSEGV)
        assert reply.siginfo == raw.Signal(raw.ACCERR, 0, BASE + PAGE)


@pytest.mark.parametrize("address", [1 << 47, (1 << 48) + BASE])
def test_no_canonical_address(client: Client, address: int) -> None:
    reply = client.raw.call(raw.LOAD, address, 1)
    assert (reply.ret, reply.signo, reply.siginfo.fatal) == (0, SIGSEGV, 0)


def test_the_kernels_half(client: Client) -> None:
    reply = client.raw.call(raw.LOAD, END - PAGE, 1)
    assert (reply.ret, reply.signo) == (0, SIGSEGV)
    assert reply.siginfo == raw.Signal(raw.MAPERR, 0, END - PAGE)


@pytest.mark.parametrize("kind", [SHARED, PRIVATE])
@pytest.mark.parametrize("access", [raw.READ, raw.WRITE])
def test_past_the_end_of_a_file_is_adrerr(client: Client, kind: int, access: int) -> None:
    fd = client.run(scripts.memfd, b"f" * (PAGE + 1))
    assert map_file(client, fd, 4, kind=kind) == BASE
    reply = touch(client, BASE, 4 * PAGE, access)
    assert (reply.ret, reply.signo) == (2, SIGBUS)
    assert reply.siginfo == raw.Signal(raw.ADRERR, 0, BASE + 2 * PAGE)
    assert load(client, BASE + PAGE, 2) == b"f\0"


def test_touch_counts_pages_not_bytes(client: Client) -> None:
    map_pages(client, 3)
    assert touch(client, BASE + PAGE - 1, 2, raw.WRITE).ret == 2
    assert touch(client, BASE + 1, 1, raw.READ).ret == 1
    assert touch(client, BASE, 3 * PAGE, raw.READ).ret == 3


def test_the_stack_grows_by_a_touch(client: Client) -> None:
    maps = client.raw.call(raw.PROCREAD, 0, MOST, data=b"self/maps").data.decode().splitlines()
    (stack,) = [line for line in maps if line.endswith("[stack]")]
    start = int(stack.split("-")[0], 16)
    assert touch(client, start - 16 * PAGE, 1, raw.WRITE).ret == 1
    after = client.raw.call(raw.PROCREAD, 0, MOST, data=b"self/maps").data.decode()
    assert f"{start - 16 * PAGE:x}-" in after


@pytest.mark.parametrize("signo", [SIGSEGV, SIGBUS])
def test_a_caught_signal_leaves_the_process_as_it_was(client: Client, signo: int) -> None:
    fd = client.run(scripts.memfd, b"f")
    map_file(client, fd, 2)
    for _again in range(3):
        reply = touch(client, BASE + (PAGE if signo == SIGBUS else 2 * PAGE), 1, raw.READ)
        assert (reply.ret, reply.signo, reply.siginfo.fatal) == (0, signo, 0)
    assert load(client, BASE, 1) == b"f"


@pytest.mark.parametrize("signo", [SIGSEGV, SIGBUS])
@pytest.mark.parametrize("disposition", [None, 0, 1])
def test_one_that_is_not_caught_ends_the_process(daemon: Daemon, signo: int, disposition: int | None) -> None:
    client = attach(daemon)
    if disposition is not None:
        assert client.raw.call(raw.RT_SIGACTION, signo, disposition).ret == 0
    fd = client.run(scripts.memfd, b"f")
    map_file(client, fd, 2)
    address = BASE + (PAGE if signo == SIGBUS else 2 * PAGE)
    replies = client.raw.exchange(raw.pack(raw.TOUCH, address, 1, raw.READ) + raw.pack(raw.GETPID))
    assert [(reply.ret, reply.signo) for reply in replies] == [(0, signo)]
    code = raw.ADRERR if signo == SIGBUS else raw.MAPERR
    assert replies[0].siginfo == raw.Signal(code, 1, address)
    assert client.raw.is_ended()


@pytest.mark.parametrize("args", [(0, 0), (65, 0), (9, 2), (9, 1), (19, 1), (11, 3)])
def test_rt_sigaction_refuses(client: Client, args: tuple[int, int]) -> None:
    assert client.raw.call(raw.RT_SIGACTION, *args).ret == -errno.EINVAL


def test_a_disposition_can_be_taken_back(client: Client) -> None:
    assert client.raw.call(raw.RT_SIGACTION, SIGSEGV, 0).ret == 0
    reply = client.raw.call(raw.LOAD, 0, 1)
    assert (reply.signo, reply.siginfo.fatal) == (SIGSEGV, 1)
    assert client.raw.is_ended()
