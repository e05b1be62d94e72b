"""The process that looks into real processes for the daemon: it may sleep for ever, and is killed then.

Answers one question after the other on descriptor 0, and ends when that does. Knows nothing of the machine. Imports
little: the daemon starts it when somebody first asks.
"""

from __future__ import annotations

import errno
import os
import socket
import struct

from kerneld.shadowpt.host_look import Question, Want, look, pack_look

QUESTION = struct.Struct("<IIQQ")
"""pid, Want, start, end; the descriptor of the process's directory comes beside it."""
ANSWER = struct.Struct("<i")
"""An errno, or 0 and a packed `Look` behind it; a perf event's descriptor comes beside it."""


def main() -> None:
    """Answer until nobody asks any more."""
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
    """Return an answer, and the descriptor that goes with it, or -1."""
    pid, want, start, end = QUESTION.unpack(data)
    try:
        found = look(Question(pid, directory_fd, Want(want), start, end))
        return ANSWER.pack(0) + pack_look(found), -1 if found.event is None else found.event.take()
    except OSError as error:
        return ANSWER.pack(error.errno or errno.EIO), -1
    finally:
        os.close(directory_fd)
