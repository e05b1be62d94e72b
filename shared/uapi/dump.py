"""The name and the format of the dump of a panic. The daemon writes it, and `kerneld inspect-dump` reads it."""

from __future__ import annotations

DUMP_FORMAT = "kerneld panic 1"


def dump_name(socket_name: str) -> str:
    """Return the name of the dump of the daemon whose socket has this name."""
    return socket_name + ".panic.json"
