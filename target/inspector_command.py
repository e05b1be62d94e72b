"""The command that starts an inspector on a range. It can be pasted into another terminal of this machine."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parent.parent


def inspector_command(pid: int, start: int, end: int, socket_path: str | None = None) -> str:
    """Return the shell command that watches [start, end) of process `pid`.

    `socket_path` is the path of the daemon's socket, None for the default path.
    """
    words = [*find_inspector(), str(pid), f"{start:#x}", f"{end:#x}"]
    return " ".join([*_environment(socket_path), *map(shlex.quote, words)])


def follow_command(pid: int, socket_path: str | None = None) -> str:
    """Return the shell command that follows process `pid`, and its children, wherever they change."""
    words = [*find_inspector(), "--follow", str(pid)]
    return " ".join([*_environment(socket_path), *map(shlex.quote, words)])


def also_command(pid: int, start: int, end: int, other: int, socket_path: str | None = None) -> str:
    """Return the shell command that shows [start, end) of process `pid` beside the same range of `other`."""
    return f"{inspector_command(pid, start, end, socket_path)} --also {other}"


def find_inspector() -> list[str]:
    """Return the words that start the inspector: the checkout's launcher, the installed command, or the module."""
    launcher = _CHECKOUT / "bin" / "inspector"
    if os.access(launcher, os.X_OK):
        relative = os.path.relpath(launcher)
        if relative.startswith(os.pardir):
            return [str(launcher)]
        return [relative if os.sep in relative else f"./{relative}"]
    if shutil.which("inspector"):
        return ["inspector"]
    beside = Path(sys.executable).with_name("inspector")
    if os.access(beside, os.X_OK):
        return [str(beside)]
    return [sys.executable, "-m", "inspector"]


def _environment(socket_path: str | None) -> list[str]:
    """Return the variable assignment with which another terminal finds the same daemon; empty for the default path."""
    path = socket_path or os.environ.get("KERNELD_SOCKET")
    return [f"KERNELD_SOCKET={shlex.quote(os.path.abspath(path))}"] if path else []
