"""The dump is that of `hexdump -C`, with the page's own addresses; read back, it is the bytes again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from inspector.hexdump import hexdump


def read_back(lines: list[str], base: int) -> bytes:
    """Return the bytes that a dump shows, as somebody who knows only hexdump(1) would read it."""
    data = bytearray()
    last = b""
    repeat = False
    for line in lines:
        if line == "*":
            repeat = True
            continue
        address = int(line[:12], 16)
        while repeat and base + len(data) < address:
            data += last
        repeat = False
        assert address == base + len(data)
        last = bytes.fromhex(line[12:].partition("|")[0])
        data += last
    return bytes(data)


def test_a_line_to_the_letter() -> None:
    assert list(hexdump(b"Hello, world\n\x00\xff~tail", 0x7F00_0000_1000)) == [
        "7f0000001000  48 65 6c 6c 6f 2c 20 77  6f 72 6c 64 0a 00 ff 7e  |Hello, world...~|",
        "7f0000001010  74 61 69 6c                                       |tail|",
        "7f0000001014",
    ]


def test_equal_lines_fold() -> None:
    assert list(hexdump(bytes(4096), 0x1000)) == [
        "000000001000  00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00  |................|",
        "*",
        "000000002000",
    ]


@given(st.lists(st.sampled_from([bytes(16), b"\xff" * 16, bytes(range(16)), b"short"]), max_size=12))
def test_a_dump_reads_back(parts: list[bytes]) -> None:
    data = b"".join(parts)
    assert read_back(list(hexdump(data, 0x4000)), 0x4000) == data
