"""Bytes as `hexdump -C` shows them. Pure."""

from __future__ import annotations

from collections.abc import Iterator

LINE_BYTES = 16


def hexdump(data: bytes, base: int = 0) -> Iterator[str]:
    """Yield the lines for `data` at address `base`. A `*` stands for lines that are equal to the line before."""
    previous = b""
    folding = False
    for offset in range(0, len(data), LINE_BYTES):
        line = data[offset : offset + LINE_BYTES]
        if line == previous and len(line) == LINE_BYTES:
            if not folding:
                yield "*"
            folding = True
            continue
        folding = False
        previous = line
        yield f"{base + offset:012x}  {_hex(line[:8])}  {_hex(line[8:])}  |{_text(line)}|"
    yield f"{base + len(data):012x}"


def _hex(half: bytes) -> str:
    return half.hex(" ").ljust(23)


def _text(line: bytes) -> str:
    return "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in line)
