"""Starts a daemon in the background. The caller returns when the socket accepts connections, or when the start failed.

A pipe connects the two. The child writes READY, or one line for people. If the child dies, the pipe ends, and the log
has the reason.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable
from typing import NamedTuple

READY = b"\x06"
SEE_LOG = "see its log"


class Started(NamedTuple):
    """The result: the pid, and after a failure the exit status and the line for people."""

    pid: int
    is_ready: bool
    status: int = 0
    message: str = ""


def start_detached(log_fd: int, serve: Callable[[Callable[[], None], Callable[[str], None]], int]) -> Started:
    """Fork a child in a new session. It runs `serve(on_ready, on_failure)`, and exits with the returned status.

    Its stdout and stderr are `log_fd`, its stdin is empty, its working directory is the root. It closes all other
    descriptors of the caller. Must be called while there is only one thread.
    """
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os.close(read_fd)
        _become_daemon(log_fd, write_fd, serve)
    os.close(write_fd)
    with os.fdopen(read_fd, "rb") as pipe:
        said = pipe.read()
    if said == READY:
        return Started(pid, True)
    _pid, wait_status = os.waitpid(pid, 0)
    status = os.waitstatus_to_exitcode(wait_status)
    message = said.decode("utf-8", "replace").strip() or f"the daemon ended before it was ready: {SEE_LOG}"
    return Started(pid, False, status if status > 0 else 1, message)


def _become_daemon(
    log_fd: int, write_fd: int, serve: Callable[[Callable[[], None], Callable[[str], None]], int]
) -> None:
    """In the child: never returns."""
    status = 1
    try:
        os.setsid()
        os.chdir("/")
        null_fd = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null_fd, 0)
        os.dup2(log_fd, 1)
        os.dup2(log_fd, 2)
        # A reader of the caller's pipe would otherwise wait for the end of this daemon.
        _close_all_but({0, 1, 2, write_fd})

        def tell(words: bytes) -> None:
            os.write(write_fd, words)
            os.close(write_fd)

        status = serve(lambda: tell(READY), lambda message: tell(message.encode()))
    except Exception:
        # An unexpected exception has no line for people. The log has the traceback.
        traceback.print_exc()
    finally:
        os._exit(status)


def _close_all_but(kept: set[int]) -> None:
    """Close every descriptor of this process that is not in `kept`."""
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd not in kept:
            # The list also has the descriptor of the listing itself, which is closed by now.
            with contextlib.suppress(OSError):
                os.close(fd)
