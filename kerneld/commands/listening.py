"""Who listens at a socket, for the commands that ask."""

from __future__ import annotations

import os
import socket
import struct

from kerneld.commands.failure import Failure, Status
from shared.wire import MAX_SOCKET_PATH

_UCRED = struct.Struct("=iII")


def check_length(path: str) -> None:
    """Raise Failure for a path that no socket can have: nobody could connect there."""
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise Failure(Status.NO_DAEMON, f"the socket path is longer than {MAX_SOCKET_PATH} bytes: {path}")


def get_daemon(path: str, if_none: str = "kerneld does not run: nobody listens at {}") -> int:
    """Return the pid of the daemon at `path`. Raises Failure(NO_DAEMON) or Failure(NOT_PERMITTED).

    `if_none` is what people are told where nobody listens; {} in it is the path.
    """
    check_length(path)
    try:
        pid = find_daemon(path)
    except PermissionError:
        raise Failure(Status.NOT_PERMITTED, f"not permitted to use the kerneld at {path}") from None
    if pid is None:
        raise Failure(Status.NO_DAEMON, if_none.format(path))
    return pid


def find_daemon(path: str) -> int | None:
    """Return the pid of the process that listens at `path`, or None when none does.

    Raises PermissionError when the directory is not ours to look into. Source: SO_PEERCRED, unix(7).
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        try:
            probe.connect(path)
        except PermissionError:
            raise
        except OSError:
            return None
        pid, _uid, _gid = _UCRED.unpack(probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return int(pid)
