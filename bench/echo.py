"""The yardstick of a round trip: a bare SEQPACKET socket whose far end unpacks each request and packs a reply.

The least that two Python processes can do to exchange the records of docs/abi.md: no table of calls, no epoll, no
credentials. Knows nothing of kerneld. Run as a program it is the far end, on the socket that is its stdin.
"""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
import time

REQUEST = struct.Struct("<II6Q")
REPLY = struct.Struct("<Iiq")
GETPID = 39


class Echo:
    """A process at the far end of a socket pair, and the near end of it."""

    def __init__(self) -> None:
        self._near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process = subprocess.Popen([sys.executable, "-P", __file__], stdin=far.fileno())
        far.close()
        self.pid = self._process.pid
        self.measure(100)

    def measure(self, count: int) -> float:
        """Return the nanoseconds of one blocking round trip, as the mean of `count`."""
        send, receive = self._near.send, self._near.recv
        pack, unpack = REQUEST.pack, REPLY.unpack
        started = time.perf_counter_ns()
        for _ in range(count):
            send(pack(56, GETPID, 0, 0, 0, 0, 0, 0))
            _size, _signo, _ret = unpack(receive(16))
        return (time.perf_counter_ns() - started) / count

    def close(self) -> None:
        """End the far end."""
        self._near.close()
        self._process.wait()


def serve(far: socket.socket) -> None:
    """Answer each request with its own number until the near end closes."""
    receive, send = far.recv, far.send
    unpack, pack = REQUEST.unpack, REPLY.pack
    while request := receive(64):
        _size, nr, *_args = unpack(request)
        send(pack(16, 0, nr))


if __name__ == "__main__":
    serve(socket.socket(fileno=sys.stdin.fileno()))
