"""An event as a line: as in Linux's trace_pipe, with the cause at the end, or as JSON."""

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
    """The names of processes, from the earlier records."""

    def __init__(self) -> None:
        self._comms: dict[int, str] = {0: "<idle>"}

    def note(self, comm: Comm) -> None:
        """Note a name."""
        self._comms[comm.pid] = comm.comm

    def find(self, pid: int) -> str:
        """Return the name of a process; `<...>` for an unknown name, as in ftrace."""
        return self._comms.get(pid, "<...>")


def call_name(nr: int) -> str:
    """Return the name of a call, or text with its number if it has no name."""
    try:
        return Nr(nr).name.lower()
    except ValueError:
        return f"syscall_{nr:#x}"


def cause_text(record: Record) -> str:
    """Return the causes, the outermost first: `store/fault@0x7f0000`. The text is empty for a record without causes."""
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
    """Return the fields in Linux's format."""
    fields = record.fields
    if record.event is SYS_ENTER:
        args = ", ".join(f"{fields[f'arg{n}']:x}" for n in range(6))
        return f"NR {fields['id']} ({args})"
    if record.event is SYS_EXIT:
        return f"NR {fields['id']} = {fields['ret']}" + (f" signo={fields['signo']}" if fields["signo"] else "")
    return " ".join(f"{one.name}={field_text(one, fields[one.name])}" for one in record.event.fields)


def text_line(record: Record, names: Names, wall: WallClock | None = None) -> str:
    """Return a record as a line of trace_pipe: `comm-tid [000] seconds: event: fields cause=…`.

    With a WallClock the line has the time of day in place of the seconds.
    """
    who = f"{field_text(_COMM, names.find(record.pid))}-{record.tid:<7}"
    when = f"{seconds_text(record.time):>12}" if wall is None else f"{wall.at(record.time):%H:%M:%S.%f}"
    cause = cause_text(record)
    line = f"{who:>24} [000] {when}: {record.event.name}: {fields_text(record)}"
    return f"{line} cause={cause}" if cause else line


def lost_line(lost: Lost) -> str:
    """Return the line for missing records, as in trace_pipe."""
    return f"CPU:0 [LOST {lost.records} EVENTS]"


def as_json(record: Record, names: Names, wall: WallClock) -> str:
    """Return a record as one line of JSON. Entries and frames are numbers.

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
    """Return the line of JSON for missing records."""
    return json.dumps({"lost": lost.records})


_COMM = Field("comm", "16s", Show.TEXT)
