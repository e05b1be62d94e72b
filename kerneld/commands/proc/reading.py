"""Reading a file of kerneld's /proc for a command, whole or in pieces. An error becomes a Failure."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from shared.failure import Failure, Status, client_failures

_WORD_BYTES = 8
"""Files of words, such as pagemap, are read in whole words: offset and length are multiples of a word."""


def read_proc(path: str, name: str, if_missing: str = "this kerneld has no such file") -> bytes:
    """Return a whole file of /proc of the kerneld at `path`. Raises Failure as `stream_proc` does."""
    return b"".join(stream_proc(path, name, if_missing=if_missing))


def stream_proc(
    path: str, name: str, offset: int = 0, length: int | None = None, *, if_missing: str
) -> Iterator[bytes]:
    """Yield the file `name` of kerneld's /proc in pieces: `length` bytes from `offset`, or up to the end.

    Offset and length may be any number, also for a file of words. The file may be longer than memory: no piece is kept.
    Raises Failure.
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
            # An error in the consumer of the pieces is not an error of reading.
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
    """Turn an exception of the client library into a Failure."""
    try:
        with client_failures():
            yield
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESRCH):
            raise Failure(Status.NO_PROCESS, if_missing) from None
        if error.errno in (errno.EPERM, errno.EACCES):
            raise Failure(Status.NOT_PERMITTED, f"not permitted to read /proc/{name}") from None
        raise Failure(Status.FAILED, f"cannot read /proc/{name}: {error.strerror}") from None
