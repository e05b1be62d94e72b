"""The way of a file's bytes to standard output."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from shared.terminal import escaped_pieces


def emit(pieces: Iterable[bytes]) -> None:
    """Write bytes to stdout, each piece when it has come: as they are, but to a terminal such as cannot steer it."""
    if sys.stdout.isatty():
        pieces = escaped_pieces(pieces)
    for piece in pieces:
        sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
