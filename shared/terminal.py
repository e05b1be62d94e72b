"""Makes names safe for a terminal. The name of a process, file or program must not control the terminal of its reader.

Any user chooses names: a file name may have bytes that move the cursor or set a title. `one_line` is for names in our
own lines. `escaped_pieces` is for whole files on a terminal (a pipe gets every byte). It writes \\ooo, as Linux v6.8
fs/seq_file.c:mangle_path() does in names.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator

_KEPT = "\n\t"


def one_line(text: str) -> str:
    """Return `text` with a question mark for each character that is not printable or would end the line."""
    return "".join(char if char.isprintable() else "?" for char in text)


def escaped(text: str) -> str:
    """Return `text` with \\ooo for each byte of a character that is not printable. Newlines and tabs stay."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in _KEPT else _octal(char) for char in text)


def _octal(char: str) -> str:
    return "".join(f"\\{byte:03o}" for byte in char.encode("utf-8", "surrogateescape"))


def escaped_pieces(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the pieces of a file, escaped. A piece may end within a character."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    for piece in pieces:
        yield escaped(decoder.decode(piece)).encode()
    yield escaped(decoder.decode(b"", final=True)).encode()
