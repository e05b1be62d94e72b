"""What a process, a file or a program calls itself, made fit for a terminal: no name may steer the one that reads it.

Names are anybody's choice: a file may be called by the bytes that move a cursor or set a title. `one_line` is for names
in lines that we write ourselves. `escaped_pieces` is for files that are printed as they come, and only where a terminal
reads them, as a pipe gets every byte; it writes \\ooo, as Linux v6.8 fs/seq_file.c:mangle_path() does in names.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator

_KEPT = "\n\t"


def one_line(text: str) -> str:
    """Return `text` with each character that is not for printing, or would end the line, as a question mark."""
    return "".join(char if char.isprintable() else "?" for char in text)


def escaped(text: str) -> str:
    """Return `text` with all that is not for printing as \\ooo, a byte of its UTF-8 each, but newlines and tabs."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in _KEPT else _octal(char) for char in text)


def _octal(char: str) -> str:
    return "".join(f"\\{byte:03o}" for byte in char.encode("utf-8", "surrogateescape"))


def escaped_pieces(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield a file that comes in pieces, which may be cut within a character, with all of it escaped."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    for piece in pieces:
        yield escaped(decoder.decode(piece)).encode()
    yield escaped(decoder.decode(b"", final=True)).encode()
