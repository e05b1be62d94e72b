"""A record of a running kerneld: a client that traces the machine and makes chunks.

The kernel never waits for it. Where records were lost, it opens another trace, whose snapshot makes the record exact
again from there on. Owns the connection. One thread uses it.
"""

from __future__ import annotations

import contextlib
import select
from collections.abc import Sequence

from shared.client import Process
from shared.client.errors import KerneldGone
from shared.client.trace import TraceSession
from shared.recording.chunks import Chunk
from shared.recording.head import GLOBS, make_head
from shared.recording.recorder import KEY_EVENTS, Recorder

DEFAULT_RING_BYTES = 16 << 20
"""A user without privilege may have a ring of this size, and no larger one."""
SUPERUSER_RING_BYTES = 64 << 20


def open_with_snapshot(
    process: Process, globs: Sequence[str], pids: Sequence[int], ring_bytes: int
) -> tuple[TraceSession, int]:
    """Return a new trace, and the size of its ring. Its snapshot is in the ring already.

    A ring that is too small for the snapshot gets larger. Raises OSError as TraceSession does, KerneldGone.
    """
    while True:
        session = TraceSession(process, globs, pids, ring_bytes)
        if not session.reader.lost:
            return session, ring_bytes
        end_trace(session)
        ring_bytes *= 2


def end_trace(session: TraceSession) -> None:
    """End a trace whose records nobody needs, also after the end of kerneld."""
    with contextlib.suppress(KerneldGone):
        session.stop()
    session.close()


class LiveRecord:
    """A record that grows. Its process is in it: the viewer is a client as any other."""

    def __init__(
        self, path: str | None, pids: Sequence[int] = (), *, ring_bytes: int = 0, key_events: int = KEY_EVENTS
    ) -> None:
        """Connect and begin. Raises OSError as TraceSession does (ESRCH, EPERM, EMFILE, ENOSPC …), KerneldGone."""
        self._process = Process.attach(path)
        try:
            self._pids = tuple(pids)
            self.is_superuser = self._process.is_superuser
            self._ring_bytes = ring_bytes or (SUPERUSER_RING_BYTES if self.is_superuser else DEFAULT_RING_BYTES)
            self._session = self._open()
        except BaseException:
            self._process.close()
            raise
        self.head = make_head(pids=self._pids, superuser=self.is_superuser)
        self.recorder = Recorder(key_events)

    def _open(self) -> TraceSession:
        session, self._ring_bytes = open_with_snapshot(self._process, GLOBS, self._pids, self._ring_bytes)
        return session

    @property
    def is_ended(self) -> bool:
        """Whether no more events will come. Those in the ring can still be read."""
        return self._session.reader.is_ended or self.is_gone

    @property
    def is_gone(self) -> bool:
        """Whether kerneld has gone away. Between calls it sends nothing, so the end alone is readable."""
        poll = select.poll()
        poll.register(self._process.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def have_ended(self, pids: Sequence[int]) -> bool:
        """Return whether all of these processes have ended, as far as has been read."""
        tasks = self.recorder.machine.tasks
        return all(pid in tasks and tasks[pid].exit_signal is not None for pid in pids)

    def read(self, timeout_seconds: float | None, *others: int, wanted_bytes: int = 1) -> list[Chunk]:
        """Return the chunks of what has come. Wait for it, or for the time, or until a descriptor can be read."""
        reader = self._session.reader
        reader.wait(timeout_seconds, self._process.fileno(), *others, wanted_bytes=wanted_bytes)
        data = reader.take()
        chunks = self.recorder.take(data) if data else []
        if self.recorder.has_gap and not self.is_ended:
            # Without this, all that follows would be followed only as well as can be.
            with contextlib.suppress(KerneldGone):
                self._session, old = self._open(), self._session
                end_trace(old)
                self.recorder.expect_snapshot()
        return chunks

    @property
    def ring_bytes(self) -> int:
        """The size of the ring."""
        return self._session.reader.size_bytes

    def stop(self) -> list[Chunk]:
        """End the trace, and return the last chunks."""
        with contextlib.suppress(KerneldGone):
            self._session.stop()
        data = self._session.reader.take()
        return self.recorder.take(data) if data else []

    def close(self) -> None:
        """Close the connection."""
        self._session.close()
        self._process.close()
