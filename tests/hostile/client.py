"""A hostile client of a real daemon: `python -m tests.hostile.client SOCKET SEED COUNT`.

Sends so many datagrams, most of them hostile in content, some in manner: without reading answers, several at once,
from a child that inherited the socket, cut off in the middle. Prints lines of JSON about what came of them: who is
killed for want of memory has then said most of it. Anything that a daemon must never do ends it with a traceback.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import random
import socket
import sys
import tempfile
from collections import Counter
from pathlib import Path

from shared import wire
from shared.client import realmem
from tests.hostile.datagrams import Hostile, Writer
from tests.hostile.descriptors import Descriptors
from tests.support.patience import SECONDS

TELL_EVERY = 100
MAX_ERRNO = 4095
"""As in Linux; beyond the last that has a name mmap answers, as there, a MAP_FIXED address of the last page."""
TABLE_BYTES = 12 << 12
ANCILLARY_BYTES = socket.CMSG_SPACE(4 * wire.MAX_FDS)


class HostileClient:
    """One process with at most one connection."""

    def __init__(self, path: str, seed: int, directory: Path) -> None:
        self._path = path
        self._random = random.Random(seed)
        self._fds = Descriptors(directory)
        self._socket: socket.socket | None = None
        entries = realmem.map_anonymous(TABLE_BYTES)
        self._writer = Writer(seed, lambda: [os.getpid(), os.getppid()], entries)
        self.counts: Counter[str] = Counter()

    def step(self) -> None:
        """Send one datagram, on a new connection where there is none."""
        if self._socket is None:
            self._connect()
            hostile = self._writer.attach()
        else:
            hostile = self._writer.datagram()
        manner = self._random.random()
        try:
            if manner < 0.002:
                self._send_from_a_child(hostile)
                return
            self._send(hostile)
            if manner < 0.004:
                self._leave()
            elif manner < 0.006:
                for _ in range(self._random.randint(1, 20)):
                    self._send(self._writer.datagram(), flags=socket.MSG_DONTWAIT)
                self._leave()
            else:
                self._receive(hostile)
        except (BrokenPipeError, ConnectionResetError):
            self._leave()
            self.counts["ends"] += 1
        except BlockingIOError:
            self._leave()

    def _connect(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(SECONDS)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self._socket.connect(self._path)
        self.counts["connections"] += 1

    def _leave(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, hostile: Hostile, flags: int = 0) -> None:
        assert self._socket is not None
        fds = self._fds.pick(self._random, hostile.nr_fds)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self._socket.sendmsg([hostile.data], rights, flags)
        self.counts["datagrams"] += 1

    def _send_from_a_child(self, hostile: Hostile) -> None:
        """Have a forked child write to the socket that it holds; its answer comes to us, who share the socket."""
        assert self._socket is not None
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(OSError):
                self._socket.send(hostile.data)
            os._exit(0)
        os.waitpid(pid, 0)
        self.counts["datagrams"] += 1
        self._receive(Hostile(hostile.data, 0, ()))

    def _receive(self, hostile: Hostile) -> None:
        if self._socket is None:
            return
        answer, ancillary, flags, _ = self._socket.recvmsg(1 << 20, ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)
        assert not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)
        for _level, _kind, data in ancillary:
            for fd in array.array("i", data):
                os.close(fd)
        if not answer:
            self._leave()
            self.counts["ends"] += 1
            return
        replies = wire.unpack_replies(answer)
        # Behind the replies to a native thread there is the record for its TLB, which has a reply's head.
        assert not hostile.requests or len(replies) <= len(hostile.requests) + 1
        for request, reply in zip(hostile.requests, replies, strict=False):
            assert reply.ret >= -MAX_ERRNO, (request, reply)
        self.counts["replies"] += len(replies)
        self.counts["good"] += sum(reply.ret >= 0 for reply in replies)
        self._writer.learn(hostile.requests, replies)

    def close(self) -> None:
        """End the connection."""
        self._leave()
        self._fds.close()


def main() -> None:
    """Do as the module says."""
    path, seed, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    with tempfile.TemporaryDirectory(prefix="hostile-") as directory:
        client = HostileClient(path, seed, Path(directory))
        told: Counter[str] = Counter()
        while client.counts["datagrams"] < count:
            client.step()
            if client.counts["datagrams"] - told["datagrams"] >= TELL_EVERY or client.counts["datagrams"] >= count:
                print(json.dumps(client.counts - told), flush=True)
                told = client.counts.copy()
        client.close()


if __name__ == "__main__":
    main()
