"""Lines of strace, made of records: a call when it has returned, a signal, the end of a process.

Owns the call that each thread is in, and the processes that are followed. Pure: takes records, returns lines. Knows no
file, and only the clock of the records. Answers to strace(1).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from signal import SIGSEGV
from typing import Any, NamedTuple

from kerneld.commands.trace.calls.arguments import call_text, result_text
from kerneld.commands.trace.calls.values import pointer, quoted, signal_code, signal_name
from shared.trace.events import (
    ACCESS_ENTER,
    ACCESS_EXIT,
    PROCESS_EXEC,
    PROCESS_EXIT,
    PROCESS_FORK,
    SIGNAL_DELIVER,
    SIGNAL_GENERATE,
    SYS_ENTER,
    SYS_EXIT,
)
from shared.trace.record import Record
from shared.uapi.signals import SI_USER, SegvCode
from shared.uapi.syscalls import Nr

_COLUMN = 40
"""Where results stand (strace -a)."""
_SECOND, _MICROSECOND = 1_000_000_000, 1000
_EXITS = frozenset({int(Nr.EXIT), int(Nr.EXIT_GROUP)})


class Style(NamedTuple):
    """The options for the text before and behind a call."""

    clock: int = 0
    """-t: the time of day; twice with microseconds; three times as seconds since the epoch."""
    relative: bool = False
    """-r: seconds since the line before."""
    spent: bool = False
    """-T: the duration of the call."""
    pids: bool = False
    """Print the pid before each line, as strace does in a file."""
    realtime_offset: int = 0
    """Nanoseconds from the clock of the records to that of people."""


@dataclass(slots=True)
class _Pending:
    """A call that has not returned."""

    nr: int
    time: int
    text: str


@dataclass(slots=True)
class Tally:
    """The totals of one kind of call."""

    calls: int = 0
    errors: int = 0
    nanoseconds: int = 0


@dataclass
class Printer:
    """The lines of some processes."""

    pids: set[int]
    """The processes that are followed now, without those that have ended."""
    calls: frozenset[int]
    follows_forks: bool = False
    style: Style = field(default_factory=Style)
    tallies: defaultdict[int, Tally] = field(default_factory=lambda: defaultdict(Tally))

    def __post_init__(self) -> None:
        self._pending: dict[tuple[int, int], _Pending] = {}
        self._addresses: dict[int, int] = {}
        """By thread, the address of the fault that raised the signal."""
        self._statuses: dict[int, int] = {}
        """By process, the argument of exit."""
        self._last_time = 0
        self._has_many = len(self.pids) > 1

    def lines(self, record: Record) -> Iterator[str]:
        """Yield the lines for a record: mostly one line or none."""
        event, pid = record.event, record.pid
        if event is PROCESS_FORK:
            yield from self._fork(record)
        elif event is PROCESS_EXIT and record.fields["pid"] in self.pids:
            yield from self._exit(record)
        elif event in (SYS_ENTER, ACCESS_ENTER):
            # The attach of a child begins before its parent is known.
            if pid in self.pids or (self.follows_forks and record.fields["id"] == Nr.ATTACH):
                self._enter(record)
        elif event in (SYS_EXIT, ACCESS_EXIT):
            pending = self._pending.pop((pid, record.tid), None)
            if pending is not None and pid in self.pids:
                yield from self._returned(record, pending)
        elif pid in self.pids:
            yield from self._other(record)

    def _enter(self, record: Record) -> None:
        fields = record.fields
        if record.event is SYS_ENTER:
            args = [fields[f"arg{n}"] for n in range(6)]
        else:
            args = [fields["vaddr"], fields["length"], fields["access"]]
        nr = fields["id"]
        if nr in _EXITS:
            self._statuses[record.pid] = args[0] & 0xFF
        self._pending[record.pid, record.tid] = _Pending(nr, record.time, call_text(nr, args))

    def _returned(self, record: Record, pending: _Pending) -> Iterator[str]:
        if pending.nr not in self.calls:
            return
        tally = self.tallies[pending.nr]
        tally.calls += 1
        tally.nanoseconds += record.time - pending.time
        tally.errors += record.fields["ret"] < 0
        yield self._call_line(record, pending, result_text(pending.nr, record.fields["ret"]), record.time)

    def _unreturned(self, record: Record) -> Iterator[str]:
        """Yield the line of a call that will not return."""
        pending = self._pending.pop((record.pid, record.tid), None)
        if pending is not None and pending.nr in self.calls:
            self.tallies[pending.nr].calls += 1
            yield self._call_line(record, pending, "?", 0)

    def _call_line(self, record: Record, pending: _Pending, result: str, end: int) -> str:
        start = self._prefix(record, pending.time) + pending.text + " "
        spent = f" <{_seconds(end - pending.time)}>" if self.style.spent and end else ""
        return f"{start:<{_COLUMN}}= {result}{spent}"

    def _fork(self, record: Record) -> Iterator[str]:
        child = record.fields["child_pid"]
        if self.follows_forks and record.fields["parent_pid"] in self.pids:
            self.pids.add(child)
            self._has_many = True
            yield f"strace: Process {child} attached"

    def _exit(self, record: Record) -> Iterator[str]:
        pid, signo = record.fields["pid"], record.fields["signo"]
        if record.pid == pid:
            yield from self._unreturned(record)
        for key in [key for key in self._pending if key[0] == pid]:
            del self._pending[key]
        self.pids.discard(pid)
        status = self._statuses.pop(pid, None)
        what = "exited" if status is None else f"exited with {status}"
        if signo:
            what = f"killed by {signal_name(signo)}"
        yield f"{self._prefix(record, record.time, pid)}+++ {what} +++"

    def _other(self, record: Record) -> Iterator[str]:
        fields = record.fields
        if record.event is SIGNAL_GENERATE:
            self._addresses[fields["pid"]] = record.address
        elif record.event is SIGNAL_DELIVER:
            address = self._addresses.pop(record.tid, 0)
            if fields["fatal"]:
                yield from self._unreturned(record)
            if fields["sig"] != 9:
                yield self._prefix(record, record.time) + _signal_text(fields, address)
        elif record.event is PROCESS_EXEC:
            pending = self._pending.get((record.pid, record.tid))
            if pending is not None and pending.nr == Nr.EXECVE:
                head, _, rest = pending.text.partition(", ")
                pending.text = f"{head.partition('(')[0]}({quoted(fields['filename'])}, {rest}"

    def _prefix(self, record: Record, time: int, pid: int = 0) -> str:
        """Return the text before a line: the process and the time."""
        who = pid or record.tid
        parts = [f"{who} "] if self.style.pids else [f"[pid {who:>5}] "] if self._has_many else []
        parts.append(self._clock(time + self.style.realtime_offset))
        if self.style.relative:
            parts.append(f"{_seconds(time - self._last_time if self._last_time else 0):>12} ")
        self._last_time = time
        return "".join(parts)

    def _clock(self, now: int) -> str:
        level = self.style.clock
        seconds, microseconds = now // _SECOND, now % _SECOND // _MICROSECOND
        if not level:
            return ""
        if level > 2:
            return f"{seconds}.{microseconds:06} "
        text = datetime.fromtimestamp(seconds).astimezone().strftime("%H:%M:%S")
        return f"{text}.{microseconds:06} " if level > 1 else f"{text} "


def _signal_text(fields: dict[str, Any], address: int) -> str:
    signo, code = fields["sig"], fields["code"]
    name = signal_name(signo)
    where = "" if code == SI_USER else f", si_addr={pointer(address)}"
    if (signo, code) == (SIGSEGV, SegvCode.PKUERR):
        where += f", si_pkey={fields['pkey']}"
    return f"--- {name} {{si_signo={name}, si_code={signal_code(signo, code)}{where}}} ---"


def _seconds(nanoseconds: int) -> str:
    return f"{nanoseconds // _SECOND}.{nanoseconds % _SECOND // _MICROSECOND:06}"
