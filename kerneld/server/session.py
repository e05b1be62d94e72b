"""A session: what stands above a connection once its client has attached.

One thread of one process, the watch of that process, and the datagram that goes on in a later turn. The connection
below knows its socket alone; what is done with a session is `kerneld.server.service`'s.

Invariant: `thread`, `call` and `usual` are there from `attached` on, `watch` soon after.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from kerneld.server.connection import Connection, usual_ancillary
from kerneld.syscalls.answer import Call
from kerneld.syscalls.kernel import Kernel, Sender

if TYPE_CHECKING:
    from kerneld.server.batch import Batch
    from kerneld.server.watch import Watch
    from kerneld.task.task import Thread

NO_ARGS = (0, 0, 0, 0, 0, 0)


class Session:
    """A connection and what has been attached through it."""

    __slots__ = ("batch", "call", "connection", "fd", "on_close", "receive", "thread", "usual", "watch")

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.fd = connection.fd
        self.receive = connection.receive
        self.thread: Thread | None = None
        self.watch: Watch | None = None
        self.batch: Batch | None = None
        """What is left of a long datagram. Nothing is read from the connection until it has been answered."""
        self.call: Call | None = None
        """The thread's, used again by each of its single requests."""
        self.on_close: Callable[[], None] | None = None
        """Who is told of its end, where it is no thread's."""
        self.usual: list[tuple[int, int, bytes]] | None = None
        """What comes beside a datagram of the sender that attached. A datagram whose ancillary data is equal needs no
        closer look at who sent it."""

    @property
    def pid(self) -> int:
        """Who it is, for the log."""
        return self.thread.process.pid if self.thread is not None else self.connection.peer.pid

    def attached(self, kernel: Kernel, thread: Thread, sender: Sender) -> None:
        """The connection is a thread's from now on."""
        self.thread = thread
        thread.session = self
        self.call = Call(kernel, thread, NO_ARGS, b"", [])
        self.usual = usual_ancillary(sender)

    def close(self) -> None:
        """Give up what goes on, and close the connection."""
        if self.on_close is not None:
            self.on_close()
        if self.batch is not None:
            self.batch.close()
            self.batch = None
        self.connection.close()
