"""A tracepoint: one event, and the traces that want it now.

Owns the packing of records. Each trace that may see a record gets it, without the fields that the trace may not see.
Answers to Linux v6.8 include/linux/tracepoint.h and, for who sees what, fs/proc/task_mmu.c:pagemap_read().
"""

from __future__ import annotations

import struct
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import structlog

from shared.trace.event import PFN_MASK, PRESENT, SWAP_FLAGS, Show

if TYPE_CHECKING:
    from kerneld.trace.current import Current
    from kerneld.trace.trace import Trace
    from shared.trace.event import Event

_log = structlog.get_logger("kerneld.trace")
_AT_ONCE = 4096
"""The records that are made together: they stay in the processor's cache."""
_U64 = (1 << 64) - 1
_SWAP_FLAGS = np.uint64(SWAP_FLAGS)
_CODES = {"H": "<u2", "I": "<u4", "i": "<i4", "Q": "<u8", "q": "<i8"}
_HEADER_NAMES = ("_size", "_event", "_pid", "_tid", "_causes", "_time", "_nr", "_owner", "_address")
_HEADER_CODES = ("H", "H", "I", "I", "I", "Q", "I", "I", "Q")


class Tracepoint:
    """The tracepoint of one event."""

    __slots__ = ("_current", "_dtype", "_names", "_number", "_pack", "_secrets", "_size", "event", "traces")

    def __init__(self, event: Event, current: Current) -> None:
        self.event = event
        self.traces: list[Trace] = []
        self._current = current
        self._pack = event.layout.pack
        self._size = event.layout.size
        self._number = event.number
        self._secrets = event.secrets
        self._names = [field.name for field in event.fields]
        codes = [*_HEADER_CODES, *(field.code for field in event.fields)]
        formats = [_CODES.get(code) or f"S{code[:-1]}" for code in codes]
        self._dtype = np.dtype(
            {"names": [*_HEADER_NAMES, *self._names], "formats": formats, "offsets": _offsets(formats),
             "itemsize": self._size}
        )  # fmt: skip

    def emit(self, owner: int, *values: Any) -> None:
        """Record one event. `owner` is the pid of the process whose memory the event is about; 0 for none."""
        try:
            self._emit(owner, values)
        except struct.error:
            # A wrapper must not cause an oops in the kernel. This record is lost, and the log has the reason.
            _log.exception("a record that its event has no room for", event_name=self.event.name, values=values)

    def _emit(self, owner: int, values: tuple[Any, ...]) -> None:
        now = self._current
        for trace in self.traces:
            if trace.pids is None:
                trace.add(
                    self._pack(
                        self._size, self._number, now.pid, now.tid, now.causes, monotonic_ns(), now.nr, owner,
                        now.address, *values,
                    )
                )  # fmt: skip
            elif trace.wants(now.pid, owner):
                head = trace.sight(now)
                shown = self._hidden(values) if trace.hides else values
                trace.add(
                    self._pack(self._size, self._number, head[0], head[1], now.causes, monotonic_ns(), head[2],
                               owner, head[3], *shown)
                )  # fmt: skip

    def _hidden(self, values: tuple[Any, ...]) -> list[Any]:
        shown = list(values)
        for at, hide in self._secrets.items():
            shown[at] = hide(shown[at])
        return shown

    def emit_many(self, owner: int, count: int, *columns: int | npt.NDArray[Any]) -> None:
        """Record `count` events of this moment. A column is an array of that length, or one value for all events."""
        now, time = self._current, monotonic_ns()
        for trace in self.traces:
            if not trace.wants(now.pid, owner):
                continue
            head = trace.sight(now)
            common = (self._size, self._number, head[0], head[1], now.causes, time, head[2], owner, head[3])
            for first in range(0, count, _AT_ONCE):
                if trace.loses(count - first, self._size):
                    break
                rows = np.zeros(min(count - first, _AT_ONCE), dtype=self._dtype)
                for name, value in zip(_HEADER_NAMES, common, strict=True):
                    rows[name] = value
                for name, column in zip(self._names, columns, strict=True):
                    rows[name] = column if isinstance(column, int) else column[first : first + len(rows)]
                if trace.hides:
                    self._hide_columns(rows)
                trace.add_many(rows.tobytes())

    def _hide_columns(self, rows: npt.NDArray[Any]) -> None:
        for at in self._secrets:
            name, show = self._names[at], self.event.fields[at].show
            rows[name] = 0 if show is Show.PFN else _without_pfns(rows[name])


def _without_pfns(entries: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Do the same as `without_pfn` for an array."""
    present = entries & np.uint64(~PFN_MASK & _U64)
    swapped = entries & _SWAP_FLAGS | ~_SWAP_FLAGS
    shown = np.where((entries & np.uint64(PRESENT)) != 0, present, swapped)
    shown[entries == 0] = 0
    return shown


def _offsets(formats: list[str]) -> list[int]:
    offsets, end = [], 0
    for code in formats:
        offsets.append(end)
        end += np.dtype(code).itemsize
    return offsets
