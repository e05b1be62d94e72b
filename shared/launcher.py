"""How a person starts a program of the project from another terminal of this machine: words of a shell command."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parent.parent


def find_program(name: str) -> list[str]:
    """Return the words that start `name`: the checkout's launcher, the installed command, or the module."""
    launcher = _CHECKOUT / "bin" / name
    if os.access(launcher, os.X_OK):
        relative = os.path.relpath(launcher)
        if relative.startswith(os.pardir):
            return [str(launcher)]
        return [relative if os.sep in relative else f"./{relative}"]
    if shutil.which(name):
        return [name]
    beside = Path(sys.executable).with_name(name)
    if os.access(beside, os.X_OK):
        return [str(beside)]
    return [sys.executable, "-m", name]


def socket_words(socket_path: str | None) -> list[str]:
    """Return the variable assignment with which another terminal finds the same daemon; empty for the default path."""
    path = socket_path or os.environ.get("KERNELD_SOCKET")
    return [f"KERNELD_SOCKET={shlex.quote(os.path.abspath(path))}"] if path else []
