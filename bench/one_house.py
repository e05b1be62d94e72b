"""One round trip in parts: client and daemon in this process, which take turns, so that only one of them ever runs.

`python -m bench.one_house COUNTER TIMES`. Nothing waits, polls or is woken here: what is counted is the work of
each side in user mode. The daemon's parts are counted by leaving out what is around them, from the handler alone to the
whole turn of the loop; a part is the difference of two such counts (`bench.parts`). The client's part is what its
library runs when the answer is there as soon as it looks.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import os
import select
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple

import structlog

from bench.echo import GETPID, REPLY, REQUEST
from bench.handlers import Nothing, stop_clock
from bench.meters import Counter, counter
from bench.pidfds import stand_in
from kerneld.server.connection import ANCILLARY_BYTES, RECEIVE_FLAGS, Inbox
from kerneld.server.door import ClientLimits
from kerneld.server.exchange import answer_usual
from kerneld.server.fair import RING
from kerneld.server.loop import Loop
from kerneld.server.reply import seal_number
from kerneld.server.socket_path import claim
from kerneld.syscalls.answer import Call
from kerneld.syscalls.dispatch import run
from kerneld.syscalls.kernel import Kernel, KernelConfig
from kerneld.syscalls.table import HANDLERS
from shared.client import Process
from shared.client.realmem import map_anonymous
from shared.spin import Spin
from shared.uapi.mman import Madv, Map, Prot
from shared.uapi.page import PAGE_SIZE
from shared.uapi.ring import ANSWER_BYTES, ANSWER_NUMBER, REQUEST_BYTES, REQUEST_NUMBER
from shared.uapi.shadowpt import table_bytes
from shared.uapi.syscalls import Nr
from shared.wire import pack_request

RAM_BYTES = 256 << 20
PAGES = 2048
RW, ANONYMOUS = Prot.READ | Prot.WRITE, Map.PRIVATE | Map.ANONYMOUS


class Request(NamedTuple):
    """A request: as its handler gets it, as it is on the way, as a client makes it, and what it returns."""

    nr: int
    args: tuple[int, int, int, int, int, int]
    data: bytes
    client: Callable[[], object]
    ret: int

    @property
    def datagram(self) -> bytes:
        """The bytes of the request."""
        return pack_request(self.nr, self.args, self.data)


def _nothing() -> None:
    pass


class Pausing:
    """A meter that measures nothing, while everything warms up."""

    begin, end = Nothing.begin, Nothing.end

    def pause(self) -> None:
        """Do nothing."""

    def resume(self) -> None:
        """Do nothing."""


class House:
    """A kernel with its loop, and a client that is attached to it, in one process and on one processor."""

    def __init__(self, directory: str) -> None:
        # With one processor neither side polls at the socket.
        os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])
        self._stop, self._stopping = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._held = claim(f"{directory}/kerneld.sock")
        self.kernel = Kernel(KernelConfig(RAM_BYTES, superuser_uid=os.getuid()))
        self.loop = Loop(self.kernel, self._held.listener, self._stop, ClientLimits())
        self.process = self.beside(lambda: Process.attach(self._held.path))
        self.connection = self.process._connection
        self.connection._until_ring = 0
        (self.session,) = self.loop.service.sessions.values()
        self.inbox = Inbox()
        self.near, self.far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pages = self._mapped_pages()
        self.hole = self._pages_for_mmap()

    def beside(self, client: Callable[[], Process]) -> Process:
        """Have a client make its requests in a thread while the loop runs here, and return what it returns."""
        results: list[Process] = []
        thread = threading.Thread(target=lambda: results.append(client()))
        thread.start()
        while thread.is_alive():
            self.loop.turn(0.001)
        return results[0]

    def call(self, nr: int, *args: int) -> int:
        """Make a request by the socket, and return what it returns."""
        self.connection._socket.send(pack_request(nr, args))
        self.loop.turn()
        return REPLY.unpack(self.connection._socket.recv(REPLY.size))[2]  # type: ignore[no-any-return]

    def open_ring(self) -> None:
        """Give the client its ring. From now on both sides always poll."""
        # Whether it helps is asked every 64th time: of the system, which may say otherwise in each run.
        setattr(Spin, "_ask", lambda _spin: True)  # noqa: B010  (mypy: a method is not to be replaced)
        self.loop._spin.skip = 0

        def opened() -> Process:
            self.connection._open_ring()
            return self.process

        self.beside(opened)
        self.call(GETPID)
        assert self.session.ring is not None
        assert self.session.ring.is_watched

    def _mapped_pages(self) -> Iterator[int]:
        """Yield addresses of pages that nobody has touched."""
        address = self.call(Nr.MMAP, 0, PAGES * PAGE_SIZE, RW, ANONYMOUS)
        self.call(Nr.MADVISE, address, PAGES * PAGE_SIZE, Madv.NOHUGEPAGE)
        yield from range(address, address + PAGES * PAGE_SIZE, PAGE_SIZE)

    @functools.cached_property
    def shown_pages(self) -> Iterator[int]:
        """Yield addresses of pages that nobody has touched, and that a shadow page table shows. It is opened here."""
        start = self.call(Nr.MMAP, 0, PAGES * PAGE_SIZE, RW, ANONYMOUS)
        self.call(Nr.MADVISE, start, PAGES * PAGE_SIZE, Madv.NOHUGEPAGE)
        end = start + PAGES * PAGE_SIZE

        def opened() -> Process:
            self.process.shadowpt_open(self.process.pid, start, end, map_anonymous(table_bytes(start, end)))
            self.process.shadowpt_start()
            return self.process

        self.beside(opened)
        return iter(range(start, end, PAGE_SIZE))

    def _pages_for_mmap(self) -> int:
        """Return where the next page is mapped."""
        # Its neighbour must be no mapping of the same kind, with which it would merge.
        self.call(Nr.MMAP, 0, PAGE_SIZE, Prot.NONE, ANONYMOUS)
        hole = self.call(Nr.MMAP, 0, PAGE_SIZE, RW, ANONYMOUS)
        self.call(Nr.MUNMAP, hole, PAGE_SIZE)
        return hole

    def close(self) -> None:
        """End both sides."""
        self.process.close()
        self.loop.close()
        self.kernel.shutdown()
        self._held.release()
        self.near.close()
        self.far.close()
        os.close(self._stop)
        os.close(self._stopping)


def getpid(house: House) -> list[Request]:
    """The least request."""
    return [Request(GETPID, (0,) * 6, b"", partial(house.process.syscall, GETPID), os.getpid())]


def store(house: House) -> list[Request]:
    """A store of eight bytes to a fresh page: a fault."""
    return _store(house, next(house.pages))


def _store(house: House, page: int) -> list[Request]:
    client = partial(house.process.mem.store_u64, page, 1)
    return [Request(Nr.STORE.value, (page, 8, 0, 0, 0, 0), bytes(8), client, 8)]


def shown(house: House) -> list[Request]:
    """The same, of a page that a shadow page table shows: with the reply, the inspector sees it."""
    return _store(house, next(house.shown_pages))


def pair(house: House) -> list[Request]:
    """The mmap and the munmap of a page."""
    process, at = house.process, house.hole
    mapped = (0, PAGE_SIZE, RW.value, ANONYMOUS.value, 0, 0)
    mmap = partial(process.mmap, 0, PAGE_SIZE, RW, ANONYMOUS)
    return [
        Request(Nr.MMAP.value, mapped, b"", mmap, at),
        Request(Nr.MUNMAP.value, (at, PAGE_SIZE, 0, 0, 0, 0), b"", partial(process.munmap, at, PAGE_SIZE), 0),
    ]


Kind = Callable[[House], list[Request]]
KINDS: dict[str, Kind] = {kind.__name__: kind for kind in (getpid, store, pair, shown)}
TOGETHER = [["getpid", "store", "pair"], ["shown"]]
"""The kinds that are counted in one house: a shadow page table makes other stores dearer too."""
Pieces = tuple[Callable[[], object], Callable[[], object]]
"""What is counted, and what has to be done after it."""


def by_nothing(house: House, counter: Counter, request: Request) -> Pieces:
    """What the counting itself takes."""
    return _nothing, _nothing


def by_pause(house: House, counter: Counter, request: Request) -> Pieces:
    """What a pause within a piece takes."""

    def paused() -> None:
        counter.pause()
        counter.resume()

    return paused, _nothing


def by_echo(house: House, counter: Counter, request: Request) -> Pieces:
    """A bare echo: both ends, one after the other."""
    near, far = house.near, house.far

    def echo() -> None:
        near.send(REQUEST.pack(56, GETPID, 0, 0, 0, 0, 0, 0))
        _size, nr, *_args = REQUEST.unpack(far.recv(64))
        far.send(REPLY.pack(16, 0, nr))
        _size, _signo, _ret = REPLY.unpack(near.recv(16))

    return echo, _nothing


def _call_of(house: House, request: Request) -> Call:
    """Return the session's call, as it is when this request runs."""
    call = house.session.call
    assert call is not None
    call.args, call.data = request.args, request.data
    return call


def by_handler(house: House, counter: Counter, request: Request) -> Pieces:
    """The handler alone."""
    # What the table has to show is no part of the next that is counted.
    return partial(HANDLERS[request.nr], _call_of(house, request)), house.kernel.shadowpt.flush


def by_dispatch(house: House, counter: Counter, request: Request) -> Pieces:
    """The handler, and what is around each: errno, signals, the shadow table."""
    return partial(run, _call_of(house, request), request.nr), _nothing


def by_answer(house: House, counter: Counter, request: Request) -> Pieces:
    """The same, from a datagram to the bytes of its reply."""
    view, length = house.inbox.view, len(request.datagram)
    view[:length] = request.datagram
    return partial(answer_usual, house.session, view, length), _nothing


def by_receive(house: House, counter: Counter, request: Request) -> Pieces:
    """The receipt of a datagram with its sender's credentials."""
    house.connection._socket.send(request.datagram)
    return partial(house.session.receive, house.inbox.buffers, ANCILLARY_BYTES, RECEIVE_FLAGS), _nothing


def by_send(house: House, counter: Counter, request: Request) -> Pieces:
    """The sending of a reply."""
    return partial(house.session.connection.send, seal_number(request.ret)), partial(house.connection._socket.recv, 64)


def by_serve(house: House, counter: Counter, request: Request) -> Pieces:
    """A ready connection, from the receipt to the sending."""
    house.connection._socket.send(request.datagram)
    return partial(house.loop.service.serve, house.session, select.EPOLLIN), partial(house.connection._socket.recv, 64)


def by_turn(house: House, counter: Counter, request: Request) -> Pieces:
    """A turn of the loop, with epoll."""
    house.connection._socket.send(request.datagram)
    return house.loop.turn, partial(house.connection._socket.recv, 64)


def by_client(house: House, counter: Counter, request: Request) -> Pieces:
    """The client's library by the socket. While it would sleep the loop has its turn, which is not counted."""
    receive = house.connection._socket.recv_into

    def away(buffer: bytearray) -> int:
        counter.pause()
        house.loop.turn()
        counter.resume()
        return receive(buffer)

    house.connection._recv_into = away  # type: ignore[assignment]
    return request.client, _nothing


def _put(house: House, request: Request) -> None:
    """Put a request into the ring, as a client does."""
    ring = house.connection._ring
    assert ring is not None
    ring.requests[: len(request.datagram)] = request.datagram
    ring.words[REQUEST_BYTES] = len(request.datagram)
    ring.words[REQUEST_NUMBER] += 1
    house.connection._answered = ring.words[REQUEST_NUMBER]


def by_ring_serve(house: House, counter: Counter, request: Request) -> Pieces:
    """A ready ring."""
    _put(house, request)
    return partial(house.loop.service.serve, house.session, RING), _nothing


def by_ring_turn(house: House, counter: Counter, request: Request) -> Pieces:
    """A turn of the loop that finds a request in a ring at its first look."""
    _put(house, request)
    return house.loop.turn, _nothing


def by_ring_client(house: House, counter: Counter, request: Request) -> Pieces:
    """The client's library by the ring. The answer is there when it looks; the loop makes it afterwards."""
    ring = house.connection._ring
    assert ring is not None
    answer = seal_number(request.ret)
    ring.answers[: len(answer)] = answer
    ring.words[ANSWER_BYTES] = len(answer)
    ring.words[ANSWER_NUMBER] = house.connection._answered + 1
    return request.client, house.loop.turn


Level = Callable[[House, Counter, Request], Pieces]
BY_SOCKET: list[Level] = [
    by_nothing, by_pause, by_echo, by_handler, by_dispatch, by_answer,
    by_receive, by_send, by_serve, by_turn, by_client,
]  # fmt: skip
BY_RING: list[Level] = [by_ring_serve, by_ring_turn, by_ring_client]


def measure(house: House, counter: Counter, level: Level, kind: Kind, times: int) -> None:
    """Have the counter count one level of all requests of a kind, so often."""
    counter.begin()
    counter.pause()
    for _ in range(times):
        for request in kind(house):
            counted, after = level(house, counter, request)
            counter.resume()
            counted()
            counter.pause()
            after()
    counter.resume()
    counter.end(f"{kind.__name__}_{level.__name__}")


def measure_all(house: House, counter: Counter, levels: list[Level], times: int, kinds: Iterable[str] = KINDS) -> None:
    """Have the counter count these levels of the kinds."""
    for level in levels:
        for kind in kinds:
            measure(house, counter, level, KINDS[kind], times)


def main(arguments: list[str]) -> None:
    """Run each level of each kind a few times, so that nothing is new, and then so often as it is counted."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    stop_clock()
    stand_in()
    for kinds in TOGETHER:
        count(arguments[0], int(arguments[1]), kinds)


def count(name: str, times: int, kinds: list[str]) -> None:
    """Have the counter of this name count all levels of some kinds, in a house of their own."""
    with (
        tempfile.TemporaryDirectory(prefix="kerneld-bench-") as directory,
        contextlib.closing(House(directory)) as house,
    ):
        for levels in (BY_SOCKET, BY_RING):
            if levels is BY_RING:
                house.open_ring()
            measure_all(house, Pausing(), levels, times, kinds)
            gc.collect()
            gc.freeze()
            gc.disable()
            meter = counter(name)
            # Once in vain: it looks up its own functions at the first call.
            measure(house, meter, by_pause, getpid, 1)
            measure_all(house, meter, levels, times, kinds)
            gc.enable()


if __name__ == "__main__":
    main(sys.argv[1:])
