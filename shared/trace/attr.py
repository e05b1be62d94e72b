"""What perf_event_open asks for, as it travels inline: events, processes, the size of the ring.

    struct kd_trace_attr { uint32_t size; uint32_t data_pages; uint32_t nr_pids; uint32_t globs_bytes; };
    /* then nr_pids times uint32_t, then globs_bytes of event globs, each ended by a NUL */

Answers to Linux v6.8 include/uapi/linux/perf_event.h: struct perf_event_attr. Differs from Linux: one ring takes many
events, each named by a glob, and many processes.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

_HEAD = struct.Struct("<IIII")
MAX_PIDS = 1024


class TraceAttr(NamedTuple):
    """A request to trace: `pids` empty for every process; `data_pages` a power of two."""

    globs: tuple[str, ...]
    pids: tuple[int, ...] = ()
    data_pages: int = 256

    def pack(self) -> bytes:
        """Return the structure."""
        globs = b"".join(glob.encode() + b"\0" for glob in self.globs)
        head = _HEAD.pack(_HEAD.size, self.data_pages, len(self.pids), len(globs))
        return head + struct.pack(f"<{len(self.pids)}I", *self.pids) + globs


def unpack_attr(data: bytes) -> TraceAttr:
    """Return what a structure says. Raises ValueError for bytes that are none."""
    if len(data) < _HEAD.size:
        raise ValueError("too short")
    size, data_pages, nr_pids, globs_bytes = _HEAD.unpack_from(data)
    pids_end = _HEAD.size + 4 * nr_pids
    if size != _HEAD.size or nr_pids > MAX_PIDS or len(data) != pids_end + globs_bytes:
        raise ValueError("lengths that disagree")
    globs = data[pids_end:]
    if not globs.endswith(b"\0"):
        raise ValueError("no events")
    pids = struct.unpack_from(f"<{nr_pids}I", data, _HEAD.size)
    return TraceAttr(tuple(globs[:-1].decode().split("\0")), pids, data_pages)
