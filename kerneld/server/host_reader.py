"""Reads the pages of real processes without blocking the daemon: a helper process reads them, and can be killed.

A thread is not enough: a thread that sleeps in the host's kernel keeps its process from ending, so even SIGTERM would
not end the daemon. Owns the helper process, the socket to it, and the questions that wait. Knows no table.

The helper has one question at a time. If a question takes too long, and a client waits for it or other questions wait
behind it, its answer is ETIMEDOUT, and the helper is killed. A helper in the host's kernel may not die at once; it is
then left to the host. There may be MAX_LOST such helpers; beyond that every question is answered with EAGAIN.

Invariants: `_under_way` is the question that the helper has; if there is none, no question waits. At most MAX_LOST
helpers have been killed and have not ended.
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
"""The longest time for a question while a client waits. On a busy machine a helper takes long to start."""
UNWANTED_SECONDS = 0.1
"""The longest time for a question without a waiting client, while other questions wait behind it."""
MAX_LOST = 8
_MAX_ANSWER_BYTES = 1 << 18
_ROOT = str(Path(kerneld.__file__).parents[1])
_PROGRAM = "import sys; sys.path.insert(0, sys.argv[1]); from kerneld.server.host_reader_process import main; main()"

log = structlog.get_logger("kerneld.server")


class _Asked(NamedTuple):
    question: Question
    """The question has its own descriptor, which is closed when the question has been sent."""
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
        """Readable when an answer has come; -1 while there is no helper."""

    @property
    def is_busy(self) -> bool:
        """Whether the helper has a question."""
        return self._under_way is not None

    def ask(self, question: Question) -> Pending:
        """Put a question at the end of the queue. The returned object gets the answer."""
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
        """Note that no client waits for this answer.

        A question that was not sent is dropped; a sent one gets less time.
        """
        pending.on_over = pending.wake = None
        if pending is self._under_way:
            self._overdue = min(self._overdue, monotonic() + UNWANTED_SECONDS)
            return
        for asked in [asked for asked in self._waiting if asked.pending is pending]:
            self._waiting.remove(asked)
            os.close(asked.question.directory_fd)

    def receive(self) -> None:
        """Take the answer of the helper, or notice its end."""
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
        """Return the longest wait in seconds: `longest`, or the time until the current question takes too long."""
        if not self._is_waited_for():
            return longest
        wait = max(0.0, self._overdue - monotonic())
        return wait if longest is None else min(wait, longest)

    def tend(self) -> None:
        """Give up a question that takes too long."""
        if self._is_waited_for() and monotonic() >= self._overdue:
            log.warning("a real process cannot be looked into: the host has not answered", seconds=ANSWER_SECONDS)
            self._end_process()
            self._answer(error=errno.ETIMEDOUT)
            self._send_next()

    def close(self) -> None:
        """End the helper. Questions without an answer get none."""
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
        """Start the helper. Raises OSError."""
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
                    # Ctrl+C is only for the daemon, which ends the helper.
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
