"""The argument of perf_event_open, which travels inline: events, processes, the size of the ring.

    struct kd_trace_attr { uint32_t size; uint32_t data_pages; uint32_t nr_pids; uint32_t globs_bytes;
                           uint32_t functions_bytes; uint32_t graph_bytes; };
    /* then nr_pids times uint32_t, then globs_bytes of event globs, functions_bytes of function globs, graph_bytes of
       function globs, each glob ended by a NUL */

Function globs are only for the events of the function tracer. The first list chooses the functions that are recorded
(Linux: set_ftrace_filter). The second list limits them to calls inside these functions (set_graph_function). An empty
list means all. `size` is the size of the structure, 24. A structure of 16 bytes ends before functions_bytes and has no
function globs.

Answers to Linux v6.8 include/uapi/linux/perf_event.h: struct perf_event_attr. Differs from Linux: one ring takes many
events, each named by a glob, and many processes.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

_HEAD_0 = struct.Struct("<IIII")
_HEAD = struct.Struct("<IIIIII")
MAX_PIDS = 1024
MAX_GLOBS = 32
"""For each kind of glob. The kernel compares every name with each glob, and serves no other client meanwhile."""
MAX_GLOB_BYTES = 128
"""More than twice the length of the longest name."""


class TraceAttr(NamedTuple):
    """A request to trace. Empty `pids` mean every process. `data_pages` is a power of two."""

    globs: tuple[str, ...]
    pids: tuple[int, ...] = ()
    data_pages: int = 256
    functions: tuple[str, ...] = ()
    """Globs of the functions that the function tracer records; empty: all."""
    graph_functions: tuple[str, ...] = ()
    """Globs of functions: calls are recorded only inside these; empty: everywhere."""

    def pack(self) -> bytes:
        """Return the structure."""
        lists = [_pack_globs(globs) for globs in (self.globs, self.functions, self.graph_functions)]
        head = _HEAD.pack(_HEAD.size, self.data_pages, len(self.pids), *map(len, lists))
        return head + struct.pack(f"<{len(self.pids)}I", *self.pids) + b"".join(lists)


def unpack_attr(data: bytes) -> TraceAttr:
    """Return the contents of a structure. Raises ValueError for bytes that are no such structure."""
    if len(data) < _HEAD_0.size:
        raise ValueError("too short")
    size, data_pages, nr_pids, globs_bytes = _HEAD_0.unpack_from(data)
    functions_bytes = graph_bytes = 0
    if size == _HEAD.size and len(data) >= size:
        functions_bytes, graph_bytes = _HEAD.unpack_from(data)[4:]
    elif size != _HEAD_0.size:
        raise ValueError("a structure of another size")
    at = size + 4 * nr_pids
    if nr_pids > MAX_PIDS or len(data) != at + globs_bytes + functions_bytes + graph_bytes:
        raise ValueError("lengths that disagree")
    pids = struct.unpack_from(f"<{nr_pids}I", data, size)
    lists = []
    for length in (globs_bytes, functions_bytes, graph_bytes):
        lists.append(_unpack_globs(data[at : at + length]))
        at += length
    if not lists[0]:
        raise ValueError("no events")
    return TraceAttr(lists[0], pids, data_pages, lists[1], lists[2])


def _pack_globs(globs: tuple[str, ...]) -> bytes:
    return b"".join(glob.encode() + b"\0" for glob in globs)


def _unpack_globs(data: bytes) -> tuple[str, ...]:
    if not data:
        return ()
    if not data.endswith(b"\0"):
        raise ValueError("a list without its end")
    globs = data[:-1].decode().split("\0")
    if len(globs) > MAX_GLOBS:
        raise ValueError("too many globs")
    if any(len(glob) > MAX_GLOB_BYTES for glob in globs):
        raise ValueError("a glob that is too long")
    return tuple(globs)
