"""Writing the bytes of a file to standard output."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from shared.terminal import escaped_pieces


def emit(pieces: Iterable[bytes]) -> None:
    """Write each piece to stdout at once. A terminal gets escapes in place of bytes that would steer it."""
    if sys.stdout.isatty():
        pieces = escaped_pieces(pieces)
    for piece in pieces:
        sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
