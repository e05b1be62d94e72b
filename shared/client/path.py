"""The default path of the daemon's socket. Reads the environment, touches no file."""

from __future__ import annotations

import os


def default_socket_path() -> str:
    """Return the socket's path: $KERNELD_SOCKET, else under $XDG_RUNTIME_DIR, else under /tmp. Source: docs/abi.md."""
    if path := os.environ.get("KERNELD_SOCKET"):
        return path
    if directory := os.environ.get("XDG_RUNTIME_DIR"):
        return os.path.join(directory, "kerneld", "kerneld.sock")
    return fallback_socket_path()


def fallback_socket_path() -> str:
    """Return the path in /tmp, for a user without $XDG_RUNTIME_DIR. Any user may have made that directory first."""
    return f"/tmp/kerneld-{os.getuid()}/kerneld.sock"


def may_be_planted(path: str) -> bool:
    """Return whether another user may have made the socket at `path`. Then the client must check the daemon's user."""
    return path == fallback_socket_path() and os.environ.get("KERNELD_SOCKET") != path
