"""One process of a program on the host: the orders that host.c takes over a pipe, and its answers.

The layout of both records is that of `struct request` and `struct reply` in host.c.
"""

from __future__ import annotations

import contextlib
import os
import select
import struct
from collections import deque
from collections.abc import Callable, Iterable

from kerneld.referee.errors import RunnerDiedError
from kerneld.referee.host_view import ProcFiles
from kerneld.referee.outcome import Outcome
from kerneld.referee.proc_files import ProcSource

CALL, LOAD, STORE, TOUCH, FORK, EXIT, WRPKRU = range(7)
"""Orders: enum order of host.c."""
_REQUEST = struct.Struct("<Q7QQ184s")
_REPLY = struct.Struct("<qQQQiiII")
_MOST_ORDERS = 128
"""How many orders are on their way at once: half of what a pipe takes (64 KiB, 256 bytes each)."""
_COMES_LATER = Outcome(0)


class Pipe:
    """Orders to one process of a program, and its answers."""

    def __init__(self) -> None:
        self.child_in, self._to = os.pipe()
        self._from, self.child_out = os.pipe()

    def close_child_ends(self) -> None:
        """Close the ends that only the process has."""
        os.close(self.child_in)
        os.close(self.child_out)

    def put(self, order: int, args: tuple[int, ...], data: bytes) -> None:
        """Send an order with up to seven arguments."""
        padded = [arg & (1 << 64) - 1 for arg in (*args, 0, 0, 0, 0, 0, 0, 0)[:7]]
        os.write(self._to, _REQUEST.pack(order, *padded, len(data), data))

    def get_reply(self) -> tuple[Outcome, int]:
        """Return the outcome and the minor faults counted. Raises RunnerDiedError."""
        ret, addr, min_flt, length, signo, code, pkey, pkru = _REPLY.unpack(self._read(_REPLY.size))
        return Outcome(ret, signo, code, addr, self._read(length), None, pkey, pkru), min_flt

    def _read(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            chunk = os.read(self._from, length - len(data))
            if not chunk:
                raise RunnerDiedError("the runner has died")
            data += chunk
        return data

    def close(self) -> None:
        """Close this side's ends."""
        os.close(self._to)
        os.close(self._from)


class HostProcess:
    """One process of a program on the host."""

    def __init__(self, pid: int, pipe: Pipe, source: ProcSource) -> None:
        self.pid = pid
        self._pipe = pipe
        self._source = source
        self._proc: ProcFiles | None = None
        self._coming: deque[bool] | None = None
        """In `together`, for each order without a reply yet whether its minor faults count."""

    def order(self, order: int, args: tuple[int, ...], data: bytes = b"", *, counts: bool = False) -> Outcome:
        """Give an order, and return its outcome; in `together`, a placeholder. `counts`: with the minor faults."""
        self._pipe.put(order, args, data)
        if self._coming is not None:
            self._coming.append(counts)
            return _COMES_LATER
        return self._reply(counts)

    def _reply(self, counts: bool) -> Outcome:
        outcome, min_flt = self._pipe.get_reply()
        return outcome._replace(min_flt=min_flt) if counts else outcome

    def together(self, calls: Iterable[Callable[[], Outcome]]) -> list[Outcome]:
        """Make calls of at most one order each, and return their outcomes. Many orders are on their way at once."""
        outcomes: list[Outcome] = []
        replies: list[Outcome] = []
        self._coming = deque()
        try:
            for call in calls:
                outcomes.append(call())
                if len(self._coming) == _MOST_ORDERS:
                    replies += [self._reply(self._coming.popleft()) for _ in range(_MOST_ORDERS)]
            replies += [self._reply(counts) for counts in self._coming]
        finally:
            self._coming = None
        later = iter(replies)
        return [next(later) if outcome is _COMES_LATER else outcome for outcome in outcomes]

    def call(self, nr: int, args: tuple[int, ...], data: bytes = b"") -> Outcome:
        """Make a system call."""
        return self.order(CALL, (nr, *args), data)

    @property
    def proc(self) -> ProcFiles:
        """The files of the process in /proc. They stay open after the first use."""
        if self._proc is None:
            self._proc = ProcFiles(self._source, self.pid)
        return self._proc

    def end(self, order: int) -> None:
        """Let the process exit, and wait for its pidfd. Its memory is freed before that."""
        if self._proc is not None:
            self._proc.close()
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(self.pid)
            self._pipe.put(order, (), b"")
            select.select([pidfd], [], [])
            os.close(pidfd)
