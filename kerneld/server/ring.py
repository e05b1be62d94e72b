"""Rings: shared memory in which a thread's requests and answers travel, instead of datagrams.

Owns the memory of a ring, and the list of rings that the loop looks at. The records are the same as in a datagram, and
so is everything that follows from them. The socket stays: for descriptors, for what is too long for the ring, and for a
client that wants to sleep until it has its answer.

The client writes a request only while the loop looks at the ring (`watched`). Otherwise it uses the socket, as a client
without a ring does. So no request needs a doorbell. If the loop stops looking at the moment at which a request is
written, or the answer takes long, the client sends the request `ring_bell` by the socket and sleeps for its answer. The
request in the ring is always answered before.

The kernel trusts nothing in the ring. It reads the number and the size once, and copies each field once. The file is
sealed, so it keeps its size. A client that lies is a client that sends bad datagrams: its connection is closed. The
memory belongs to the thread that asked for it: whoever writes to it is taken for that thread, so a process that shares
its memory (a forked child that has kept the descriptor) can harm nobody else.

Stores are in order on x86-64, so a number is written after what it announces.
"""

from __future__ import annotations

import fcntl
import os
from typing import Generic, TypeVar

from kerneld.server.connection import Datagram
from kerneld.shadowpt.segment import map_without_descriptor
from kerneld.syscalls.kernel import Sender
from shared.uapi.native import ADVANCES_BYTES
from shared.uapi.ring import (
    ANSWER_BYTES,
    ANSWER_NUMBER,
    ANSWERS_START,
    CHILDREN_START,
    MOST_ANSWER_BYTES,
    MOST_REQUEST_BYTES,
    REQUEST_BYTES,
    REQUEST_NUMBER,
    REQUESTS_START,
    RING_BYTES,
    TAKEN_NUMBER,
    WATCHED,
)

S = TypeVar("S")
"""A session: what a ring belongs to."""
MOST_WATCHED = 8
"""The most rings that the loop looks at. Each costs 0.1 µs each time; the threads of the other rings use the socket."""
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class Ring:
    """The ring of one session: zeroed memory, and what has been taken from it."""

    __slots__ = ("_answers", "_map", "advances", "children", "is_serving", "is_watched", "requests", "taken", "words")

    def __init__(self, fd: int, *, has_advances: bool = False) -> None:
        """Map the ring's file, which `make_file` has made. Raises OSError."""
        self._map = map_without_descriptor(fd, RING_BYTES + (ADVANCES_BYTES if has_advances else 0))
        view = memoryview(self._map)
        self.advances = view[RING_BYTES:].cast("Q")
        """The memory behind a native thread's ring, for `kerneld.tlb.advances`."""
        self.words = view[:REQUESTS_START].cast("Q")
        self.children = view[CHILDREN_START:REQUESTS_START].cast("I")
        """The pids of the thread's children that have not attached: `shared.uapi.ring.CHILDREN_START`."""
        self.requests = view[REQUESTS_START:ANSWERS_START]
        """The last request datagram, from its start."""
        self._answers = view[ANSWERS_START:RING_BYTES]
        self.taken = 0
        """The number of the last datagram that was taken from the ring."""
        self.is_serving = False
        """Whether this datagram has no answer yet."""
        self.is_watched = False

    def take(self) -> int:
        """Take the datagram that the client has announced, and tell it so. Return the size in bytes that it claims."""
        words = self.words
        self.taken = words[TAKEN_NUMBER] = words[REQUEST_NUMBER]
        self.is_serving = True
        return words[REQUEST_BYTES]

    def datagram(self, length: int, sender: Sender) -> Datagram:
        """Return a copy of the datagram that was taken: of the process that attached, without descriptors."""
        is_cut = length > MOST_REQUEST_BYTES
        data = memoryview(b"" if is_cut else bytes(self.requests[:length]))
        return Datagram(data, sender, [], is_cut, False)

    def answer(self, answer: bytes, *, has_fds: bool) -> bool:
        """Answer the datagram that was taken, if the answer fits and needs no descriptors.

        Return False if it must go by the socket. The client has been told so.
        """
        self.is_serving = False
        words, length = self.words, len(answer)
        fits = length <= MOST_ANSWER_BYTES and not has_fds
        if fits:
            self._answers[:length] = answer
        words[ANSWER_BYTES] = length if fits else 0
        words[ANSWER_NUMBER] = self.taken
        return fits

    def close(self) -> None:
        """Unmap the ring."""
        self.advances.release()
        self.words.release()
        self.children.release()
        self.requests.release()
        self._answers.release()
        self._map.close()


def make_file(*, has_advances: bool = False) -> int:
    """Return a descriptor of a new file for a ring, which the caller closes. Its size is fixed. Raises OSError."""
    fd = os.memfd_create("kerneld-ring", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, RING_BYTES + (ADVANCES_BYTES if has_advances else 0))
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


class Rings(Generic[S]):
    """The sessions whose rings the loop looks at."""

    def __init__(self) -> None:
        self.watched: list[tuple[Ring, S]] = []

    def watch(self, ring: Ring, session: S) -> None:
        """Begin to look at the ring of a session. If there are too many, the oldest is looked at no more."""
        if len(self.watched) == MOST_WATCHED:
            # Its client may have written a request just now. It rings the bell when no answer comes.
            self.forget(self.watched[0][0])
        ring.is_watched = True
        ring.words[WATCHED] = 1
        self.watched.append((ring, session))

    def find(self) -> list[S]:
        """Return the sessions that have a request in their ring."""
        # Whether the client has written a request that has not been taken: `Service.serve` asks the same.
        return [session for ring, session in self.watched if ring.words[REQUEST_NUMBER] != ring.taken]

    def tell(self, *, is_watching: bool) -> None:
        """Tell the clients of all these rings whether the loop looks at them."""
        for ring, _session in self.watched:
            ring.words[WATCHED] = is_watching

    def forget_all(self) -> None:
        """Look at no ring. The clients have been told."""
        for ring, _session in self.watched:
            ring.is_watched = False
        self.watched.clear()

    def forget(self, ring: Ring) -> None:
        """Look at this ring no more."""
        if ring.is_watched:
            ring.words[WATCHED] = 0
            ring.is_watched = False
            self.watched[:] = [entry for entry in self.watched if entry[0] is not ring]
