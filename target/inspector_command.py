"""The command that starts an inspector on a range. It can be pasted into another terminal of this machine."""

from __future__ import annotations

import shlex

from shared.launcher import find_program, socket_words


def inspector_command(pid: int, start: int, end: int, socket_path: str | None = None) -> str:
    """Return the shell command that watches [start, end) of process `pid`.

    `socket_path` is the path of the daemon's socket, None for the default path.
    """
    words = [*find_program("inspector"), str(pid), f"{start:#x}", f"{end:#x}"]
    return " ".join([*socket_words(socket_path), *map(shlex.quote, words)])


def follow_command(pid: int, socket_path: str | None = None) -> str:
    """Return the shell command that follows process `pid`, and its children, wherever they change."""
    words = [*find_program("inspector"), "--follow", str(pid)]
    return " ".join([*socket_words(socket_path), *map(shlex.quote, words)])


def also_command(pid: int, start: int, end: int, other: int, socket_path: str | None = None) -> str:
    """Return the shell command that shows [start, end) of process `pid` beside the same range of `other`."""
    return f"{inspector_command(pid, start, end, socket_path)} --also {other}"
