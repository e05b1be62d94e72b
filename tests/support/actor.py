"""A real process that a test directs: it carries out one order after another and sends back what came of each.

Actors are forked by one process, the nursery: that costs a tenth of starting an interpreter. It is their real parent,
reaps them when asked to, and never talks to kerneld.

Orders come over a socket pair, one pickle a datagram: a function of tests.e2e.scripts, or the path of a method. The
end of the socket ends the process.
"""

from __future__ import annotations

import operator
import os
import pickle
import socket
import sys
from collections.abc import Callable
from typing import Any

from shared.client import Process
from tests.support.raw import RawThread

MAX_MESSAGE = 190_000


class Leave(BaseException):
    """Return from main."""


class Fail(BaseException):
    """End by an exception that nobody catches."""


class Me:
    """What an actor has at hand: its Process, raw connections, and whatever its scripts keep."""

    def __init__(self, control: socket.socket, socket_path: str) -> None:
        self.control = control
        self.socket_path = socket_path
        self.raw = RawThread()
        self.second = RawThread()
        self.me = self
        self.kept: dict[str, Any] = {}
        self.fds: list[int] = []
        self._process: Process | None = None

    @property
    def p(self) -> Process:
        """The process as kerneld sees it: attached at first use."""
        if self._process is None:
            self._process = Process.attach(self.socket_path)
        return self._process

    def new_raw(self, name: str = "raw") -> None:
        """Begin a raw connection anew."""
        getattr(self, name).close()
        setattr(self, name, RawThread())

    def reply(self, ok: bool, value: object) -> None:
        """Send what came of an order."""
        self.control.send(pickle.dumps((ok, value)))

    def split(self, fork: Callable[[], int]) -> int:
        """Fork; the child takes its orders from the socket that came with this one."""
        (fd,) = self.fds
        self.fds = []
        pid = fork()
        if pid:
            os.close(fd)
        else:
            self.control.close()
            self.control = socket.socket(fileno=fd)
        return pid

    def fork(self) -> int:
        """Fork as a program of kerneld's does."""
        return self.split(self.p.fork)

    def plain_fork(self) -> int:
        """Fork without kerneld knowing: the child holds the socket."""
        return self.split(os.fork)


def serve(me: Me) -> None:
    """Carry out orders until there are no more."""
    while True:
        message, me.fds, _flags, _address = socket.recv_fds(me.control, MAX_MESSAGE, 4)
        if not message:
            return
        order, args, named = pickle.loads(message)
        try:
            value = operator.attrgetter(order)(me)(*args, **named) if isinstance(order, str) else order(me, *args)
        except Leave:
            return
        except Exception as error:
            me.reply(False, error)
        else:
            me.reply(True, value)


def main() -> None:
    """Be the nursery on the descriptor of the first argument, or one of the actors that it forks."""
    orders = socket.socket(fileno=int(sys.argv[1]))
    while True:
        message, fds, _flags, _address = socket.recv_fds(orders, MAX_MESSAGE, 2)
        if not message:
            return
        order, value = pickle.loads(message)
        if order == "reap":
            orders.send(pickle.dumps(os.waitstatus_to_exitcode(os.waitpid(value, 0)[1])))
            continue
        control, stderr = fds
        pid = os.fork()
        if pid == 0:
            orders.close()
            os.dup2(stderr, 2)
            os.close(stderr)
            serve(Me(socket.socket(fileno=control), value))
            return
        os.close(control)
        os.close(stderr)
        orders.send(pickle.dumps(pid))
