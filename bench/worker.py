"""Clients in processes of their own: a forked child that is attached to a daemon and runs what it is sent."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Concatenate, ParamSpec, TypeVar

from shared.client import Process

P = ParamSpec("P")
T = TypeVar("T")
_FORK = multiprocessing.get_context("fork")


class Worker:
    """One child: `call` runs a function of a module in it, with the child's attached Process in front."""

    def __init__(self, socket_path: str) -> None:
        self._pipe, far = _FORK.Pipe()
        self._child = _FORK.Process(target=_serve, args=(far, socket_path))
        self._child.start()
        far.close()
        self.pid = self._pipe.recv()

    def call(self, function: Callable[Concatenate[Process, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `function(process, *args)` in the child and return its result."""
        self.send(function, *args, **kwargs)
        return self.receive()  # type: ignore[no-any-return]

    def send(self, function: Callable[Concatenate[Process, P], T], *args: P.args, **kwargs: P.kwargs) -> None:
        """Start a function in the child, whose result `receive` then returns."""
        self._pipe.send((function, args, kwargs))

    def receive(self) -> Any:
        """Return the result of what was sent."""
        return self._pipe.recv()

    def close(self) -> None:
        """End the child. It is told to: its sisters hold copies of its pipe, so that it would not see the end."""
        self._pipe.send(None)
        self._child.join()
        self._pipe.close()


def _serve(pipe: Connection, socket_path: str) -> None:
    process = Process.attach(socket_path)
    pipe.send(os.getpid())
    while True:
        order = pipe.recv()
        if order is None:
            return
        function, args, kwargs = order
        pipe.send(function(process, *args, **kwargs))
