"""An event as a line: as Linux's trace_pipe has it, with the cause behind, or as JSON."""

from __future__ import annotations

import json
from typing import Any

from shared.clock import WallClock, seconds_text
from shared.terminal import one_line
from shared.trace.event import Field, Show
from shared.trace.events import SYS_ENTER, SYS_EXIT, Cause
from shared.trace.record import Comm, Lost, Record
from shared.uapi.syscalls import Nr

_HEXADECIMAL = frozenset({Show.HEX, Show.PFN, Show.ENTRY})
_NAMED = frozenset({Cause.SYSCALL, Cause.ACCESS})


class Names:
    """The names of processes, as the records before have told them."""

    def __init__(self) -> None:
        self._comms: dict[int, str] = {0: "<idle>"}

    def note(self, comm: Comm) -> None:
        """Take a name in."""
        self._comms[comm.pid] = comm.comm

    def find(self, pid: int) -> str:
        """Return a process's name, as ftrace does `<...>` where it is not known."""
        return self._comms.get(pid, "<...>")


def call_name(nr: int) -> str:
    """Return a call's name, or its number in words where it has none."""
    try:
        return Nr(nr).name.lower()
    except ValueError:
        return f"syscall_{nr:#x}"


def cause_text(record: Record) -> str:
    """Return why it happened, the outermost first: `store/fault@0x7f0000`; empty where nothing was under way."""
    parts = []
    for cause in record.causes:
        if cause in _NAMED:
            parts.append(call_name(record.nr))
        elif cause is Cause.FAULT:
            parts.append("fault")
        else:
            parts.append(cause.name.lower())
    text = "/".join(parts)
    return f"{text}@{record.address:#x}" if "fault" in parts else text


def field_text(field: Field, value: Any) -> str:
    """Return one field's value for people."""
    if field.names is not None:
        try:
            return field.names(value).name.lower()
        except ValueError:
            return f"{value:#x}"
    if field.show in _HEXADECIMAL:
        return f"{value:#x}"
    return one_line(value) if isinstance(value, str) else str(value)


def fields_text(record: Record) -> str:
    """Return the fields, as Linux prints those of its own."""
    fields = record.fields
    if record.event is SYS_ENTER:
        args = ", ".join(f"{fields[f'arg{n}']:x}" for n in range(6))
        return f"NR {fields['id']} ({args})"
    if record.event is SYS_EXIT:
        return f"NR {fields['id']} = {fields['ret']}" + (f" signo={fields['signo']}" if fields["signo"] else "")
    return " ".join(f"{one.name}={field_text(one, fields[one.name])}" for one in record.event.fields)


def text_line(record: Record, names: Names, wall: WallClock | None = None) -> str:
    """Return a record as a line of trace_pipe: `comm-tid [000] seconds: event: fields cause=…`.

    With a WallClock the time of day stands in place of the seconds.
    """
    who = f"{field_text(_COMM, names.find(record.pid))}-{record.tid:<7}"
    when = f"{seconds_text(record.time):>12}" if wall is None else f"{wall.at(record.time):%H:%M:%S.%f}"
    cause = cause_text(record)
    line = f"{who:>24} [000] {when}: {record.event.name}: {fields_text(record)}"
    return f"{line} cause={cause}" if cause else line


def lost_line(lost: Lost) -> str:
    """Return the line that stands where records are missing, as trace_pipe has it."""
    return f"CPU:0 [LOST {lost.records} EVENTS]"


def as_json(record: Record, names: Names, wall: WallClock) -> str:
    """Return a record as one line of JSON; numbers are numbers, entries and frames too.

    `time` is CLOCK_MONOTONIC in nanoseconds, `when` the local time.
    """
    named = {
        one.name: field_text(one, record.fields[one.name]) if one.names else record.fields[one.name]
        for one in record.event.fields
    }
    when = wall.at(record.time).isoformat(timespec="microseconds")
    return json.dumps(
        {
            "time": record.time, "when": when, "event": record.event.name, "comm": names.find(record.pid),
            "pid": record.pid, "tid": record.tid, "owner": record.owner, "cause": cause_text(record),
            "causes": [cause.name.lower() for cause in record.causes], "nr": record.nr, "address": record.address,
            "fields": named,
        }
    )  # fmt: skip


def lost_json(lost: Lost) -> str:
    """Return the line of JSON that stands where records are missing."""
    return json.dumps({"lost": lost.records})


_COMM = Field("comm", "16s", Show.TEXT)
