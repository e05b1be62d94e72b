"""The name and the format of a panic's dump, which the daemon writes and `kerneld inspect-dump` reads."""

from __future__ import annotations

DUMP_FORMAT = "kerneld panic 1"


def dump_name(socket_name: str) -> str:
    """Return the name of the dump of the daemon whose socket has this name."""
    return socket_name + ".panic.json"
