"""Fork: first the simulated copy, then the real fork. The parent continues when the child is attached.

Owns the pipe between parent and child. Answers to Linux v6.8 kernel/fork.c:kernel_clone(), seen from the program.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from shared.client.errors import KerneldError


def fork_attached(attach_child: Callable[[], None]) -> int:
    """Fork the real process and run `attach_child` in the child. Return the child's pid in the parent, 0 in the child.

    The parent returns when the child has attached or is dead. The parent can wait for a dead child by its pid.
    Raises OSError when the real fork fails, and KerneldError when the child could not attach; that child has ended.
    """
    reader, writer = os.pipe()
    try:
        pid = os.fork()
    except BaseException:
        os.close(reader)
        os.close(writer)
        raise
    if pid:
        os.close(writer)
        _await_child(pid, reader)
        return pid
    os.close(reader)
    try:
        attach_child()
    except (KerneldError, OSError) as error:
        # The callers' code must not run twice: the parent raises the error, the child just ends.
        os.write(writer, str(error).encode() or b"?")
        os._exit(127)
    finally:
        os.close(writer)
    return 0


def _await_child(pid: int, reader: int) -> None:
    """Read until the child closes its end.

    The pipe is empty when the child has attached or died; else it has the error.
    """
    with open(reader, "rb") as pipe:
        failure = pipe.read()
    if failure:
        os.waitpid(pid, 0)
        raise KerneldError(f"fork: the child could not attach: {failure.decode(errors='replace')}")
