"""Looks into real processes that the daemon does not wait for: another process makes them, and is given up if need be.

A thread would not do. One that sleeps in the host's kernel keeps its process from ending, so that not even SIGTERM
would end the daemon. Owns that process, the socket to it, and the questions that wait for their turn. Knows no table.

There is one question under way at a time. One that takes long, with somebody asleep for it or others behind it, is
answered with ETIMEDOUT, and the process that has not answered it is killed. Where even that has no effect yet the
process is left to the host; so many such as there may be, and then every question is answered with EAGAIN.

Invariants: `_under_way` is the question that the process has got; nothing waits while there is none. At most
MAX_LOST processes have been killed and have not ended.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import sys
from collections import deque
from pathlib import Path
from time import monotonic
from typing import NamedTuple

import structlog

import kerneld
from kerneld.server.host_reader_process import ANSWER, QUESTION
from kerneld.shadowpt.asking import Pending
from kerneld.shadowpt.host_look import Descriptor, Question, unpack_look

ANSWER_SECONDS = 3.0
"""How long a question may be under way while somebody waits: on a busy machine a process takes long to start."""
UNWANTED_SECONDS = 0.1
"""How long one still may be that nobody wants any more, while others are behind it."""
MAX_LOST = 8
_MAX_ANSWER_BYTES = 1 << 18
_ROOT = str(Path(kerneld.__file__).parents[1])
_PROGRAM = "import sys; sys.path.insert(0, sys.argv[1]); from kerneld.server.host_reader_process import main; main()"

log = structlog.get_logger("kerneld.server")


class _Asked(NamedTuple):
    question: Question
    """With a descriptor of its own, which is closed when the question has been sent."""
    pending: Pending


class HostReader:
    """The loop's reader of real processes (`kerneld.shadowpt.asking.HostReader`)."""

    def __init__(self, epoll: select.epoll) -> None:
        self._epoll = epoll
        self._socket: socket.socket | None = None
        self._pid = 0
        self._lost: list[int] = []
        self._under_way: Pending | None = None
        self._overdue = 0.0
        self._waiting: deque[_Asked] = deque()
        self.fd = -1
        """Readable when an answer has come; -1 while there is no process."""

    @property
    def is_busy(self) -> bool:
        """Whether a question is under way."""
        return self._under_way is not None

    def ask(self, question: Question) -> Pending:
        """Ask, as soon as those before have been answered."""
        pending = Pending()
        try:
            own = question._replace(directory_fd=os.dup(question.directory_fd))
        except OSError as error:
            pending.finish(None, error)
            return pending
        self._waiting.append(_Asked(own, pending))
        self._send_next()
        return pending

    def give_up(self, pending: Pending) -> None:
        """Nobody waits for this answer any more: it is not asked for, or those behind it wait for it less long."""
        pending.on_over = pending.wake = None
        if pending is self._under_way:
            self._overdue = min(self._overdue, monotonic() + UNWANTED_SECONDS)
            return
        for asked in [asked for asked in self._waiting if asked.pending is pending]:
            self._waiting.remove(asked)
            os.close(asked.question.directory_fd)

    def receive(self) -> None:
        """The process has answered, or has ended."""
        assert self._socket is not None
        fds: list[int] = []
        try:
            answer, fds, _flags, _address = socket.recv_fds(self._socket, _MAX_ANSWER_BYTES, 1, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            answer = b""
        event = Descriptor(fds[0]) if fds else None
        if not answer:
            self._end_process()
            self._answer(error=errno.EIO)
        else:
            (code,) = ANSWER.unpack_from(answer)
            self._answer(answer[ANSWER.size :], code, event)
        self._send_next()

    def wait_seconds(self, longest: float | None) -> float | None:
        """Return how long to wait at most, `longest` or until a question has been under way for too long."""
        if not self._is_waited_for():
            return longest
        wait = max(0.0, self._overdue - monotonic())
        return wait if longest is None else min(wait, longest)

    def tend(self) -> None:
        """Give up what has been under way for too long."""
        if self._is_waited_for() and monotonic() >= self._overdue:
            log.warning("a real process cannot be looked into: the host has not answered", seconds=ANSWER_SECONDS)
            self._end_process()
            self._answer(error=errno.ETIMEDOUT)
            self._send_next()

    def close(self) -> None:
        """Let the process go, and nobody know anything."""
        self._end_process()
        self._answer(error=errno.ECANCELED)
        while self._waiting:
            asked = self._waiting.popleft()
            os.close(asked.question.directory_fd)
            asked.pending.finish(None, OSError(errno.ECANCELED, os.strerror(errno.ECANCELED)))

    def _is_waited_for(self) -> bool:
        return self._under_way is not None and (self._under_way.wake is not None or bool(self._waiting))

    def _answer(self, packed: bytes = b"", error: int = 0, event: Descriptor | None = None) -> None:
        pending, self._under_way = self._under_way, None
        if pending is None:
            return
        if error:
            pending.finish(None, OSError(error, os.strerror(error)))
        else:
            pending.finish(unpack_look(packed, event))

    def _send_next(self) -> None:
        while self._waiting and self._under_way is None:
            (pid, directory_fd, want, start, end), pending = self._waiting.popleft()
            try:
                daemon = self._socket or self._start_process()
                socket.send_fds(daemon, [QUESTION.pack(pid, want, start, end)], [directory_fd], socket.MSG_NOSIGNAL)
            except OSError as error:
                self._end_process()
                pending.finish(None, error)
            else:
                self._under_way, self._overdue = pending, monotonic() + ANSWER_SECONDS
            finally:
                os.close(directory_fd)

    def _start_process(self) -> socket.socket:
        """Start the process that looks. Raises OSError."""
        self._reap()
        if len(self._lost) >= MAX_LOST:
            raise OSError(errno.EAGAIN, "the processes that look into others are all asleep")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                self._pid = os.posix_spawn(
                    sys.executable,
                    [sys.executable, "-I", "-S", "-c", _PROGRAM, _ROOT],
                    {},
                    file_actions=[
                        (os.POSIX_SPAWN_DUP2, theirs.fileno(), 0),
                        (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                        (os.POSIX_SPAWN_DUP2, 1, 2),
                    ],
                    # Ctrl+C is for the daemon alone, which ends this one.
                    setpgroup=0,
                    setsigmask=(),
                )
                self._epoll.register(ours.fileno(), select.EPOLLIN)
            except BaseException:
                ours.close()
                raise
        ours.setblocking(False)
        self._socket, self.fd = ours, ours.fileno()
        return ours

    def _end_process(self) -> None:
        if self._socket is not None:
            self._epoll.unregister(self.fd)
            self._socket.close()
            self._socket, self.fd = None, -1
        if self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            self._lost.append(self._pid)
            self._pid = 0
        self._reap()

    def _reap(self) -> None:
        for pid in list(self._lost):
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG) == (0, 0):
                    continue
            self._lost.remove(pid)
