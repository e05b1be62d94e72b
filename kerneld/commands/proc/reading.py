"""A file of kerneld's /proc, read by a command: whole or in pieces, and what goes wrong as one line and a status."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from shared.failure import Failure, Status, client_failures

_WORD_BYTES = 8
"""Files of words, such as pagemap, are read by whole words: at offsets and lengths that are multiples of it."""


def read_proc(path: str, name: str, if_missing: str = "this kerneld has no such file") -> bytes:
    """Return the whole of a file of the kerneld at `path`. Raises Failure as `stream_proc` does."""
    return b"".join(stream_proc(path, name, if_missing=if_missing))


def stream_proc(
    path: str, name: str, offset: int = 0, length: int | None = None, *, if_missing: str
) -> Iterator[bytes]:
    """Yield kerneld's /proc file `name` as it comes: `length` bytes from `offset`, all without a length.

    Any offset and length will do, of a file of words too. Nothing is kept: a file may be longer than memory.
    Raises Failure with the status that fits.
    """
    from shared.client import Process  # noqa: PLC0415

    skip = offset % _WORD_BYTES
    words = None if length is None else -(-(skip + length) // _WORD_BYTES) * _WORD_BYTES
    with as_failures(name, if_missing):
        process = Process.attach(path)
    try:
        pieces = process.iter_proc(name, offset - skip, words)
        left = length
        while True:
            # What goes wrong in the reader of these pieces is the reader's own.
            with as_failures(name, if_missing):
                piece = next(pieces, None)
            if piece is None:
                return
            piece = piece[skip:] if left is None else piece[skip : skip + left]
            skip = 0
            if left is not None:
                left -= len(piece)
            yield piece
    finally:
        process.close()


@contextlib.contextmanager
def as_failures(name: str, if_missing: str) -> Iterator[None]:
    """Turn what the client library raises into the one line and the status that people get."""
    try:
        with client_failures():
            yield
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESRCH):
            raise Failure(Status.NO_PROCESS, if_missing) from None
        if error.errno in (errno.EPERM, errno.EACCES):
            raise Failure(Status.NOT_PERMITTED, f"not permitted to read /proc/{name}") from None
        raise Failure(Status.FAILED, f"cannot read /proc/{name}: {error.strerror}") from None
