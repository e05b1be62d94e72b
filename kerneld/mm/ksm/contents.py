"""The contents of a frame: to be compared, and their checksum."""

from __future__ import annotations

import zlib

from kerneld.mm.frames.frames import Frames
from shared.uapi.page import PAGE_SIZE, Pfn

_ZEROS = bytes(PAGE_SIZE)


def page_bytes(frames: Frames, pfn: Pfn) -> bytes:
    """Return the contents of a frame; two of them compare as Linux's memcmp_pages() does.

    A frame that was never written is not read: that would take memory of the host.
    """
    return bytes(frames.ram.page(pfn)) if frames.ram.written[pfn] else _ZEROS


def calc_checksum(frames: Frames, pfn: Pfn) -> int:
    """Return a checksum of 32 bits of a frame's contents.

    Linux's is another one, which no program can see. Source: Linux v6.8 mm/ksm.c:calc_checksum().
    """
    return zlib.crc32(page_bytes(frames, pfn))


ZERO_CHECKSUM = zlib.crc32(_ZEROS)
