"""Who listens at a socket, for the commands that ask."""

from __future__ import annotations

import os

from kerneld.commands.failure import Failure, Status
from shared.wire import MAX_SOCKET_PATH


def check_length(path: str) -> None:
    """Raise Failure for a path that no socket can have: nobody could connect there."""
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise Failure(Status.NO_DAEMON, f"the socket path is longer than {MAX_SOCKET_PATH} bytes: {path}")


def get_daemon(path: str, if_none: str = "kerneld does not run: nobody listens at {}") -> int:
    """Return the pid of the daemon at `path`. Raises Failure(NO_DAEMON) or Failure(NOT_PERMITTED).

    `if_none` is what people are told where nobody listens; {} in it is the path.
    """
    from kerneld.server.peer import find_daemon  # noqa: PLC0415

    check_length(path)
    try:
        pid = find_daemon(path)
    except PermissionError:
        raise Failure(Status.NOT_PERMITTED, f"not permitted to use the kerneld at {path}") from None
    if pid is None:
        raise Failure(Status.NO_DAEMON, if_none.format(path))
    return pid
