"""A scripted kerneld: the socket and the records of docs/abi.md, and answers that each test writes itself.

One loop over all connections, one datagram at a time, as the real one; in a thread, or in a process of its own for
tests that fork.
"""

from __future__ import annotations

import array
import contextlib
import os
import selectors
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from shared import wire
from shared.client import Process
from shared.uapi.syscalls import Nr
from shared.wire import Request, SigInfo
from tests.support.descriptors import open_descriptors


class Said(NamedTuple):
    """What a script answers to one request."""

    ret: int = 0
    data: bytes = b""
    signo: int = 0
    info: SigInfo | None = None
    fds: tuple[int, ...] = ()
    raw: bytes | None = None
    """The whole record instead, for an answer against the contract."""
    then: bytes = b""
    """A second datagram, after the answer."""


class Hangup(Exception):
    """A script ends the connection without an answer."""


Script = Callable[[Request, list[int]], Said]
"""Answers one request; pops the descriptors that it takes from the front of the list."""


def signalled(signo: int, fatal: bool, ret: int = 0, address: int = 0) -> Said:
    """An answer that raises a signal."""
    return Said(ret, signo=signo, info=SigInfo(1, fatal, address))


def settled_fds(process: Process) -> int:
    """How many descriptors this process has, once the thread that serves `process` has closed its own."""
    process.syscall(Nr.GETPID)
    return len(open_descriptors())


class FakeKerneld:
    """Listens at `path`; `datagrams` holds, in the thread's case, what came, attach aside."""

    def __init__(self, path: Path, script: Script) -> None:
        self.path = str(path)
        self.script = script
        self.datagrams: list[list[Request]] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(self.path)
        self._listener.listen()
        self._stop_reader, self._stop_writer = os.pipe()

    @contextlib.contextmanager
    def in_thread(self) -> Iterator[FakeKerneld]:
        """Serve in a thread of this process."""
        thread = threading.Thread(target=self._serve)
        thread.start()
        try:
            yield self
        finally:
            os.close(self._stop_writer)
            thread.join()
            os.close(self._stop_reader)
            self._listener.close()

    @contextlib.contextmanager
    def in_process(self) -> Iterator[FakeKerneld]:
        """Serve in a child: this process keeps one thread, as a program that forks should."""
        pid = os.fork()
        if pid == 0:
            try:
                self._serve()
            finally:
                os._exit(1)
        self._listener.close()
        try:
            yield self
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(self._stop_reader)
            os.close(self._stop_writer)

    @property
    def requests(self) -> list[Request]:
        """Every request that came, attach aside."""
        return [request for datagram in self.datagrams for request in datagram]

    def _serve(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._stop_reader, selectors.EVENT_READ)
            try:
                self._loop(selector)
            finally:
                # A script that fails must not leave its client waiting.
                _close_all(selector, (self._listener, self._stop_reader))

    def _loop(self, selector: selectors.BaseSelector) -> None:
        while True:
            for key, _events in selector.select():
                if key.fileobj == self._stop_reader:
                    return
                if key.fileobj is self._listener:
                    accepted = self._listener.accept()[0]
                    # An answer of wire.MAX_REPLY has to fit.
                    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, wire.MAX_REPLY)
                    selector.register(accepted, selectors.EVENT_READ)
                    continue
                connection = key.fileobj
                assert isinstance(connection, socket.socket)
                if not self._serve_one(connection):
                    selector.unregister(connection)
                    connection.close()

    def _serve_one(self, connection: socket.socket) -> bool:
        """Answer one datagram; False when the connection is over."""
        try:
            datagram, fds = _receive(connection)
            if not datagram:
                return False
            requests = wire.unpack_requests(datagram)
            if requests[0].nr != Nr.ATTACH:
                self.datagrams.append(requests)
            answer, sent, last = self._answer(requests, fds)
        except (Hangup, ConnectionError):
            return False
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", sent))] if sent else []
        with contextlib.suppress(ConnectionError):
            connection.sendmsg([answer], rights)
            if last.then:
                connection.send(last.then)
        for fd in (*sent, *fds):
            os.close(fd)
        return not (last.info and last.info.fatal)

    def _answer(self, requests: list[Request], fds: list[int]) -> tuple[bytes, list[int], Said]:
        packed, sent, said = bytearray(), list[int](), Said()
        for request in requests:
            said = self.script(request, fds)
            sent += said.fds
            if said.info:
                packed += wire.pack_signal_reply(said.ret, said.signo, said.info)
                break
            packed += wire.pack_reply(said.ret, said.data) if said.raw is None else said.raw
        return bytes(packed), sent, said


def _receive(connection: socket.socket) -> tuple[bytes, list[int]]:
    space = socket.CMSG_SPACE(wire.MAX_FDS * 4)
    datagram, ancillary, _flags, _address = connection.recvmsg(wire.MAX_DATAGRAM + 1, space)
    fds = array.array("i")
    for _level, _kind, data in ancillary:
        fds.frombytes(data)
    return datagram, fds.tolist()


def _close_all(selector: selectors.BaseSelector, but: Sequence[object]) -> None:
    for key in list(selector.get_map().values()):
        if key.fileobj not in but:
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
