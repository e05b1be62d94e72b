"""Messages between the referee and a player on another machine: their form on a pair of descriptors.

A message is a line of plain values (JSON), and bytes. The bytes are texts of /proc; each text is sent once in a
message, however often it comes. Knows nothing about what messages are for, but how states are packed.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable
from typing import Any

from kerneld.referee.errors import LinkError
from kerneld.referee.host_view import Reading
from kerneld.referee.layout import Layout
from kerneld.referee.numbers import ProcTexts
from kerneld.referee.outcome import Outcome, StateOf

_HEAD = struct.Struct("<4sII")
"""The magic, the length of the values, and of the bytes."""
_MAGIC = b"kref"
_PIECE = 1 << 16


class Link:
    """One end: descriptors to read from and to write to, which the caller owns."""

    def __init__(self, receive: int, send: int) -> None:
        self._receive = receive
        self._send = send

    def put(self, values: dict[str, Any], data: bytes = b"") -> None:
        """Send a message. Raises LinkError if nobody reads it."""
        text = json.dumps(values, separators=(",", ":")).encode()
        rest = memoryview(b"".join((_HEAD.pack(_MAGIC, len(text), len(data)), text, data)))
        try:
            while rest:
                rest = rest[os.write(self._send, rest) :]
        except BrokenPipeError:
            raise LinkError("the other end of the link has gone") from None

    def get(self) -> tuple[dict[str, Any], bytes]:
        """Return the next message. Raises LinkError at the end, and if what comes is no message."""
        magic, length, data_length = _HEAD.unpack(self._read(_HEAD.size))
        if magic != _MAGIC:
            raise LinkError(f"what comes from the other end is no message of a player: it begins with {magic!r}")
        values = json.loads(self._read(length))
        return values, self._read(data_length)

    def _read(self, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            piece = os.read(self._receive, min(length - len(data), _PIECE))
            if not piece:
                raise LinkError("the other end of the link has gone")
            data += piece
        return bytes(data)


class _Texts:
    """Bytes in the order in which they were first added."""

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}

    def add(self, text: bytes) -> int:
        return self._numbers.setdefault(text, len(self._numbers))

    @property
    def lengths(self) -> list[int]:
        return [len(text) for text in self._numbers]

    def join(self) -> bytes:
        return b"".join(self._numbers)


def pack_states(states: Iterable[StateOf[Reading]]) -> tuple[dict[str, Any], bytes]:
    """Return states as a message."""
    texts = _Texts()
    packed = [
        [
            outcome._asdict() | {"data": texts.add(outcome.data)},
            [[who, *_pack_reading(reading, texts)] for who, reading in readings.items()],
            counters,
        ]
        for outcome, readings, counters in states
    ]
    return {"states": packed, "texts": texts.lengths}, texts.join()


def unpack_states(layout: Layout, values: dict[str, Any], data: bytes) -> list[StateOf[Reading]]:
    """Return the states in a message of `pack_states`."""
    texts: list[bytes] = []
    start = 0
    for length in values["texts"]:
        texts.append(data[start : start + length])
        start += length
    return [
        StateOf(
            Outcome(**outcome | {"data": texts[outcome["data"]]}),
            {who: _unpack_reading(layout, reading, texts) for who, *reading in readings},
            counters,
        )
        for outcome, readings, counters in values["states"]
    ]


def _pack_reading(reading: Reading, texts: _Texts) -> list[Any]:
    return [
        [texts.add(text) for text in (reading.smaps, *reading.texts)],
        [[low, texts.add(words)] for low, words in reading.words],
        list(reading.page_flags.items()),
    ]


def _unpack_reading(layout: Layout, values: list[Any], texts: list[bytes]) -> Reading:
    (smaps, *rest), words, flags = values
    return Reading.parse(
        layout,
        texts[smaps],
        ProcTexts(*(texts[number] for number in rest)),
        tuple((low, texts[number]) for low, number in words),
        dict(flags),
    )
