"""The test's side of an actor: a real process with `p` (its Process), `raw` and `second` (raw connections)."""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from tests.support.actor import MAX_MESSAGE, Me
from tests.support.patience import SECONDS

ROOT = Path(__file__).resolve().parents[2]
"""Longer than anything here takes."""
ACTOR = "from tests.support.actor import main; main()"

P = ParamSpec("P")
T = TypeVar("T")


class Remote:
    """An object in an actor: calls of its methods are made there."""

    def __init__(self, client: Client, path: str) -> None:
        self._client = client
        self._path = path

    def __getattr__(self, name: str) -> Any:
        return Remote(self._client, f"{self._path}.{name}")

    def __call__(self, *args: object, **named: object) -> Any:
        self._client.send((self._path, args, named))
        return self._client.result()


class Nursery:
    """The process that forks actors, and their real parent."""

    def __init__(self) -> None:
        self._orders, theirs = _pair()
        self._orders.settimeout(SECONDS)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", ACTOR, str(theirs.fileno())],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )

    def start(self, path: Path | str) -> Client:
        """Return a new actor for the kerneld at `path`."""
        ours, theirs = _pair()
        stderr, stderr_writer = os.pipe()
        with theirs:
            socket.send_fds(self._orders, [pickle.dumps(("start", str(path)))], [theirs.fileno(), stderr_writer])
        os.close(stderr_writer)
        return Client(ours, pickle.loads(self._orders.recv(MAX_MESSAGE)), self, stderr)

    def reap(self, pid: int) -> int:
        """Wait for an actor and return its status as its real parent sees it. Raises TimeoutError if it does not end.

        The nursery is asked only then: it would wait for ever, and no other test would have an actor.
        """
        pidfd = os.pidfd_open(pid)
        try:
            if not select.select([pidfd], [], [], SECONDS)[0]:
                raise TimeoutError(f"actor {pid} has not ended")
        finally:
            os.close(pidfd)
        self._orders.send(pickle.dumps(("reap", pid)))
        status: int = pickle.loads(self._orders.recv(MAX_MESSAGE))
        return status

    def close(self) -> None:
        """End the nursery."""
        self._orders.close()
        self._process.wait(SECONDS)


class Client:
    """A process that does what it is told: the nursery's child, or one that fork() made."""

    def __init__(self, control: socket.socket, pid: int, nursery: Nursery | None = None, stderr: int = -1) -> None:
        control.settimeout(SECONDS)
        self._control = control
        self.pid = pid
        self._nursery = nursery
        self._stderr = stderr
        self._status: int | None = None
        self.p: Any = Remote(self, "p")
        self.raw: Any = Remote(self, "raw")
        self.second: Any = Remote(self, "second")
        self.me: Any = Remote(self, "me")
        self.stderr = b""
        self._children: list[Client] = []

    def send(self, message: object, fds: list[int] | None = None) -> None:
        """Send an order without waiting for what comes of it."""
        socket.send_fds(self._control, [pickle.dumps(message)], fds or [])

    def result(self) -> Any:
        """Wait for what came of the oldest order. Raises what it raised, EOFError where the process has ended."""
        try:
            message = self._control.recv(MAX_MESSAGE)
        except ConnectionResetError:
            message = b""
        if not message:
            raise EOFError(f"actor {self.pid} has ended")
        ok, value = pickle.loads(message)
        if not ok:
            raise value
        return value

    def post(self, script: Callable[Concatenate[Me, P], object], *args: P.args, **_named: P.kwargs) -> None:
        """Have a script run, without waiting."""
        self.send((script, args, {}))

    def run(self, script: Callable[Concatenate[Me, P], T], *args: P.args, **_named: P.kwargs) -> T:
        """Run a script of tests.e2e.scripts in the actor and return what it returns."""
        self.send((script, args, {}))
        result: T = self.result()
        return result

    def fork(self, method: str = "fork") -> Client:
        """Fork the actor, by `fork` or `plain_fork`, and return the child."""
        ours, theirs = _pair()
        with theirs:
            self.send((method, (), {}), [theirs.fileno()])
        child = Client(ours, self.result())
        self._children.append(child)
        assert child.result() == 0
        return child

    def wait(self) -> int:
        """Wait until the process has ended and return its status as its real parent sees it; `stderr` is then full."""
        assert self._nursery is not None
        if self._status is None:
            self._status = self._nursery.reap(self.pid)
            self.stderr = self._read_stderr()
        return self._status

    def signal(self, signo: int) -> None:
        """Send a signal."""
        os.kill(self.pid, signo)

    def kill(self) -> None:
        """Kill it and wait for its end."""
        self.signal(signal.SIGKILL)
        self.wait()

    def close(self) -> None:
        """Let go: an actor that lives is killed, and its children end."""
        self._control.close()
        for child in self._children:
            child.close()
        if self._nursery is None:
            self._end_as_a_child()
        elif self._status is None:
            self.kill()

    def _end_as_a_child(self) -> None:
        """Kill a process that another has forked and wait for its end; whoever its parent is now reaps it."""
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(self.pid)
            try:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                assert select.select([pidfd], [], [], SECONDS)[0]
            finally:
                os.close(pidfd)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _read_stderr(self) -> bytes:
        """Return what there is: a forked child may hold the other end open."""
        os.set_blocking(self._stderr, False)
        parts = []
        with contextlib.suppress(BlockingIOError):
            while part := os.read(self._stderr, 1 << 16):
                parts.append(part)
        os.close(self._stderr)
        return b"".join(parts)


def _pair() -> tuple[socket.socket, socket.socket]:
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in pair:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 18)
    return pair
