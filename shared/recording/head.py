"""The head of a record: what a reader needs to know that no record tells. A reader in any language needs only this.

It has the layout of each event, the names of numbers, the rights with which it was recorded, and a moment on both
clocks, so that times can be shown as times of day.
"""

from __future__ import annotations

import os
import struct
import time
from typing import Any

from shared.trace.event import HEADER, Event
from shared.trace.events import EVENTS, FTRACE, Cause
from shared.uapi.page import PAGE_SIZE
from shared.uapi.syscalls import Nr

HEADER_NAMES = ("size", "event", "pid", "tid", "causes", "time", "nr", "owner", "address")
GLOBS = ("*", "kmem", "mm", "pgtable", "filemap", "swap_state", "snapshot")
"""The events of a record: all but those of the function tracer and of each access of the processor."""
VM_FLAGS = {
    "READ": 0x1, "WRITE": 0x2, "EXEC": 0x4, "SHARED": 0x8, "MAYREAD": 0x10, "MAYWRITE": 0x20, "MAYEXEC": 0x40,
    "MAYSHARE": 0x80, "GROWSDOWN": 0x100, "PFNMAP": 0x400, "LOCKED": 0x2000, "SEQ_READ": 0x8000, "RAND_READ": 0x1_0000,
    "DONTCOPY": 0x2_0000, "DONTEXPAND": 0x4_0000, "LOCKONFAULT": 0x8_0000, "ACCOUNT": 0x10_0000,
    "NORESERVE": 0x20_0000, "HUGETLB": 0x40_0000, "SYNC": 0x80_0000, "WIPEONFORK": 0x200_0000, "DONTDUMP": 0x400_0000,
    "SOFTDIRTY": 0x800_0000, "HUGEPAGE": 0x2000_0000, "NOHUGEPAGE": 0x4000_0000, "MERGEABLE": 0x8000_0000,
}  # fmt: skip
"""Linux v6.8 include/linux/mm.h: VM_*."""


def make_head(*, pids: tuple[int, ...], superuser: bool) -> dict[str, Any]:
    """Return the head of a record that begins now. Empty `pids` mean every process."""
    return {
        "made_by": "kerneld",
        "viewer": os.getpid(),
        "pids": list(pids),
        "superuser": superuser,
        "monotonic_ns": time.monotonic_ns(),
        "unix_ns": time.time_ns(),
        "page_size": PAGE_SIZE,
        "header": _columns(HEADER, HEADER_NAMES),
        "events": [_describe(event) for event in EVENTS if event.number not in FTRACE],
        "causes": {str(int(cause)): cause.name.lower() for cause in Cause},
        "calls": {str(int(nr)): nr.name.lower() for nr in Nr},
        "vm_flags": VM_FLAGS,
    }


def _columns(codes: str, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return name, struct code and offset of each column of a packed little-endian structure."""
    found, at = [], 0
    for name, code in zip(names, codes.lstrip("<"), strict=True):
        found.append({"name": name, "code": code, "offset": at})
        at += struct.calcsize("<" + code)
    return found


def _describe(event: Event) -> dict[str, Any]:
    fields, at = [], struct.calcsize(HEADER)
    for one in event.fields:
        field: dict[str, Any] = {"name": one.name, "code": one.code, "offset": at, "show": one.show.value}
        if one.names is not None:
            field["names"] = {str(int(value)): value.name.lower() for value in one.names}
        fields.append(field)
        at += struct.calcsize("<" + one.code)
    return {
        "number": event.number, "name": event.name, "about": event.about, "size": event.layout.size, "fields": fields,
    }  # fmt: skip
