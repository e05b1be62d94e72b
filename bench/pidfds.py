"""pidfd_open(2) for a process under valgrind: version 3.19 does not know it, so another process makes the call.

Run as a program it is that process, on the socket that is its stdin, until the other end closes.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys

PID_BYTES = 4


def stand_in() -> None:
    """Have `os.pidfd_open` of this process ask another one, which is not under valgrind."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    subprocess.Popen([sys.executable, "-P", __file__], stdin=far.fileno())
    far.close()

    def pidfd_open(pid: int, _flags: int = 0) -> int:
        near.send(pid.to_bytes(PID_BYTES, "little"))
        _, fds, _, _ = socket.recv_fds(near, 1, 1, socket.MSG_CMSG_CLOEXEC)
        if not fds:
            raise ProcessLookupError
        return fds[0]

    vars(os)["pidfd_open"] = pidfd_open


def serve(far: socket.socket) -> None:
    """Answer each pid with a descriptor, or with none where there is no such process."""
    while order := far.recv(PID_BYTES):
        try:
            fd = os.pidfd_open(int.from_bytes(order, "little"))
        except ProcessLookupError:
            far.send(b"-")
            continue
        socket.send_fds(far, [b"+"], [fd])
        os.close(fd)


if __name__ == "__main__":
    serve(socket.socket(fileno=sys.stdin.fileno()))
