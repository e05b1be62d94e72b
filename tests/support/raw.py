"""A client written from docs/abi.md alone: its own packing, its own numbers, nothing of the project's."""

from __future__ import annotations

import array
import socket
import struct
from collections.abc import Sequence
from typing import NamedTuple

from tests.support.patience import SECONDS

MMAP, MPROTECT, MUNMAP, BRK, RT_SIGACTION = 9, 10, 11, 12, 13
MREMAP, MSYNC, MINCORE, MADVISE, GETPID, EXECVE, EXIT = 25, 26, 27, 28, 39, 59, 60
GETUID, SETUID, GETPPID, MLOCK, MUNLOCK, MLOCKALL, MUNLOCKALL = 102, 105, 110, 149, 150, 151, 152
GETTID, EXIT_GROUP, PRLIMIT64, PROCESS_VM_READV, PROCESS_VM_WRITEV = 186, 231, 302, 310, 311
MLOCK2, PROCESS_MADVISE = 325, 440
OPEN, CLOSE, START, STOP, PAGE_CONTENTS = 462, 463, 464, 465, 466
ATTACH, LOAD, STORE, TOUCH, PROCREAD, RAM, CLONE = 0x1000, 0x1001, 0x1002, 0x1003, 0x1004, 0x1005, 0x1006

VERSION = 1
LIMIT = 131_072
MAPERR, ACCERR, ADRERR = 1, 2, 2
READ, WRITE, FETCH = 0, 1, 2

_HEAD = struct.Struct("<II6Q")
_REPLY = struct.Struct("<Iiq")
_SIGINFO = struct.Struct("<iiQ")


class Signal(NamedTuple):
    """struct kd_siginfo."""

    si_code: int
    fatal: int
    si_addr: int


class Reply(NamedTuple):
    """struct kd_reply and what follows it."""

    ret: int
    signo: int = 0
    data: bytes = b""
    fds: tuple[int, ...] = ()

    @property
    def siginfo(self) -> Signal:
        """The inline data of a reply with a signal."""
        return Signal(*_SIGINFO.unpack(self.data))


def pack(nr: int, *args: int, data: bytes = b"", size: int | None = None) -> bytes:
    """Return one kd_request; `size` instead of the true one."""
    words = [arg & 0xFFFF_FFFF_FFFF_FFFF for arg in args] + [0] * (6 - len(args))
    return _HEAD.pack(_HEAD.size + len(data) if size is None else size, nr, *words) + data


def unpack(answer: bytes, fds: tuple[int, ...] = ()) -> list[Reply]:
    """Return the replies of one answer, descriptors with the first."""
    replies: list[Reply] = []
    while answer:
        size, signo, ret = _REPLY.unpack_from(answer)
        assert _REPLY.size <= size <= len(answer)
        replies.append(Reply(ret, signo, answer[_REPLY.size : size], () if replies else fds))
        answer = answer[size:]
    return replies


class RawThread:
    """One connection."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(SECONDS)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)

    def connect(self, path: str) -> None:
        """Connect, and say nothing yet."""
        self.socket.connect(path)

    def attach(self, path: str, tid: int = 0, token: int = 0) -> int:
        """Connect and attach; return ret."""
        self.connect(path)
        return self.call(ATTACH, VERSION, tid, token).ret

    def send(self, datagram: bytes, fds: Sequence[int] = ()) -> None:
        """Send one datagram."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.socket.sendmsg([datagram], rights)

    def receive(self) -> list[Reply]:
        """Return the replies of one answer, descriptors with the first; none at the end of the connection."""
        fds = array.array("i")
        try:
            answer, ancillary, _flags, _address = self.socket.recvmsg(1 << 20, 1 << 12)
        except ConnectionResetError:
            return []
        for _level, _kind, data in ancillary:
            fds.frombytes(data)
        return unpack(answer, tuple(fds))

    def exchange(self, datagram: bytes, fds: Sequence[int] = ()) -> list[Reply]:
        """Send one datagram and return the replies."""
        self.send(datagram, fds)
        return self.receive()

    def call(self, nr: int, *args: int, data: bytes = b"", fds: Sequence[int] = ()) -> Reply:
        """Make one request."""
        (reply,) = self.exchange(pack(nr, *args, data=data), fds)
        return reply

    def is_ended(self) -> bool:
        """Wait for the next thing to come: whether it is the end of the connection."""
        return self.receive() == []

    def close(self) -> None:
        """End the connection."""
        self.socket.close()
