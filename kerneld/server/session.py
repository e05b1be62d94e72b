"""A session: the layer above a connection.

It has the thread that the client has attached, its ring, the watch of the process, and the datagram that is not
finished. The
connection below knows only its socket. `kerneld.server.service` serves a session.

Invariant: `thread`, `call` and `usual` are set from `attached` on, `watch` soon after.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from kerneld.server.connection import NOBODY, Connection, usual_ancillary
from kerneld.server.ring import Ring, Rings, make_file
from kerneld.syscalls.answer import Answer, Call
from kerneld.syscalls.kernel import Kernel, Sender
from kerneld.tlb.advances import Advances
from shared.uapi.ring import RING_BYTES

if TYPE_CHECKING:
    from kerneld.server.batch import Batch
    from kerneld.server.held import HeldAnswer
    from kerneld.server.watch import Watch
    from kerneld.task.task import Inherited, Thread

NO_ARGS = (0, 0, 0, 0, 0, 0)
_HAS_ANOTHER_CPU = len(os.sched_getaffinity(0)) > 1
"""Whether a client may run while the daemon does."""


class Session:
    """A connection, and the thread that was attached through it."""

    __slots__ = (
        "_rings", "batch", "call", "connection", "crowd", "fd", "inherited", "on_close", "on_word", "receive",
        "ring", "sender", "thread", "usual", "vruntime", "watch",
    )  # fmt: skip

    def __init__(self, connection: Connection, rings: Rings[Session]) -> None:
        """`rings` are those that the loop looks at."""
        self._rings = rings
        self.connection = connection
        self.fd = connection.fd
        self.receive = connection.receive
        self.thread: Thread | None = None
        self.inherited: Inherited | None = None
        """What the thread begins with that attaches by a lent connection: it is new, and made by who asked for it."""
        self.watch: Watch | None = None
        self.batch: Batch | HeldAnswer | None = None
        """The rest of a long datagram. The server reads nothing from the connection until the datagram is answered."""
        self.ring: Ring | None = None
        """The memory in which requests come besides the socket, if the client has asked for it."""
        self.call: Call | None = None
        """The Call of the thread. Each of its single requests uses it again."""
        self.vruntime = 0.0
        """The seconds that its long requests have taken, as `kerneld.server.fair` counts them."""
        self.crowd = 0
        """The crowd in which they were counted."""
        self.on_close: Callable[[], None] | None = None
        """Called at the end of a connection that has no thread (an agent's)."""
        self.on_word: Callable[[], bool] | None = None
        """Called when there is a word on such a connection. It takes the word, and returns False at the end."""
        self.sender = NOBODY
        """The sender of the last datagram that was looked at: the attached process, with its user at that time."""
        self.usual: list[tuple[int, int, bytes]] | None = None
        """The ancillary data of a datagram of the attached sender. A datagram with equal ancillary data needs no
        further check of its sender."""

    @property
    def pid(self) -> int:
        """The pid of the client, for the log."""
        return self.thread.process.pid if self.thread is not None else self.connection.peer.pid

    def attached(self, kernel: Kernel, thread: Thread, sender: Sender) -> None:
        """Note the thread of this connection."""
        self.thread = thread
        thread.session = self
        self.call = Call(kernel, thread, NO_ARGS, b"", [])
        self.sender = sender
        self.usual = usual_ancillary(sender)

    def open_ring(self) -> Answer | int:
        """Give the connection a ring in the place of its former one. Return its size with its descriptor, or -errno.

        -EBUSY: the request itself has come in a ring.
        """
        if self.ring is not None and self.ring.is_serving:
            return -errno.EBUSY
        self._close_ring()
        thread, call = self.thread, self.call
        assert thread is not None
        assert call is not None
        is_native = thread.tlb is not None
        try:
            fd = make_file(has_advances=is_native)
        except OSError as error:
            return -(error.errno or errno.ENOMEM)
        try:
            self.ring = Ring(fd, has_advances=is_native)
        except OSError as error:
            os.close(fd)
            return -(error.errno or errno.ENOMEM)
        if is_native:
            tlb = call.kernel.tlbs.get(thread.process.live_mm)
            thread.advances = Advances(self.ring.advances, tlb, thread.process, call.kernel.advances)
        return Answer(RING_BYTES, fds=(fd,))

    def begin_request(self, datagram: memoryview) -> None:
        """Note that a request has come, by the ring or by the socket."""
        thread = self.thread
        if thread is not None and thread.tlb is not None:
            thread.tlb.begin(datagram)
            if thread.advances is not None:
                thread.advances.is_answered_first = _HAS_ANOTHER_CPU

    def on_answered(self) -> None:
        """Do what has waited until the answer to a request was there."""
        if self.thread is not None and self.thread.advances is not None:
            self.thread.advances.on_answered()

    def _close_ring(self) -> None:
        ring, self.ring = self.ring, None
        if ring is not None:
            if self.thread is not None and self.thread.advances is not None:
                self.thread.advances.end()
                self.thread.advances = None
            self._rings.forget(ring)
            ring.close()

    def close(self) -> None:
        """Give up an unfinished batch, and close the connection."""
        if self.on_close is not None:
            self.on_close()
        if self.batch is not None:
            self.batch.close()
            self.batch = None
        self._close_ring()
        self.connection.close()
