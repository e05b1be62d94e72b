"""The daemon as another program finds it: who listens on a socket, and ending it. Light: no kernel is imported."""

from __future__ import annotations

import os
import select
import signal
import socket
import struct

_UCRED = struct.Struct("=iII")


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


def stop_daemon(pid: int, timeout_seconds: float) -> bool:
    """Send SIGTERM to process `pid` and wait until it has ended; False when it has not in that time.

    Raises PermissionError when it is another user's.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        return bool(poll.poll(timeout_seconds * 1000))
    except ProcessLookupError:
        return True
    finally:
        os.close(pidfd)
