"""The helper process that reads real processes for the daemon. It may block for ever; then the daemon kills it.

Answers one question after the other on descriptor 0, and ends when descriptor 0 ends. Knows nothing about the machine.
Imports little: the daemon starts it at the first question, and a client waits for it.
"""

from __future__ import annotations

import errno
import os
import socket
import struct

from kerneld.shadowpt.host_look import Question, Want, look, pack_look

QUESTION = struct.Struct("<IIQQ")
"""pid, Want, start, end. The descriptor of the /proc directory of the process comes with it."""
ANSWER = struct.Struct("<i")
"""An errno, or 0 followed by a packed `Look`. The descriptor of a perf event may come with it."""


def main() -> None:
    """Answer questions until descriptor 0 ends."""
    with socket.socket(fileno=0) as daemon:
        while True:
            data, fds, _flags, _address = socket.recv_fds(daemon, QUESTION.size, 1)
            if not data:
                return
            answer, event = _answer(data, fds[0]) if fds else (ANSWER.pack(errno.EMFILE), -1)
            if event < 0:
                daemon.send(answer)
                continue
            try:
                socket.send_fds(daemon, [answer], [event])
            finally:
                os.close(event)


def _answer(data: bytes, directory_fd: int) -> tuple[bytes, int]:
    """Return an answer, and the descriptor to send with it, or -1."""
    pid, want, start, end = QUESTION.unpack(data)
    try:
        found = look(Question(pid, directory_fd, Want(want), start, end))
        return ANSWER.pack(0) + pack_look(found), -1 if found.event is None else found.event.take()
    except OSError as error:
        return ANSWER.pack(error.errno or errno.EIO), -1
    finally:
        os.close(directory_fd)
