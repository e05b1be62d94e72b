"""Changes as they happen: runs from records, lines, and that a table is closed however a log ends. No daemon."""

from __future__ import annotations

import json
import os
import select
import signal
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from inspector import cli
from inspector.events import EventLog, Update
from inspector.failure import InspectorStatus
from inspector.table import Change, Frames
from inspector.view import update_json_line, update_line
from shared.client import Process
from shared.failure import Failure, Status
from shared.trace.events import SHADOWPT_START, SPTE_UPDATE, Cause
from shared.trace.record import Comm, Entry, Lost, Record
from shared.uapi.page import PAGE_SIZE
from shared.uapi.syscalls import Nr
from tests.inspector.fake import BASE, PID, FakeMachine

RANGE = [str(PID), hex(BASE), "+16K", "--events"]
NOON = 1_700_000_000_000_000_000
STORE = (Cause.ACCESS, Cause.FAULT)


def record(
    pages: int, old: tuple[int, int], new: tuple[int, int], causes: tuple[Cause, ...] = STORE, nr: int = Nr.STORE
) -> Record:
    """Return a change of the pages from BASE on, old and new as frame and flags."""
    fields = {"nr_pages": pages, "vaddr": BASE, "old_pfn": old[0], "old_flags": old[1]}
    fields |= {"new_pfn": new[0], "new_flags": new[1]}
    return Record(SPTE_UPDATE, 5_000_000, PID, PID, PID, causes, nr, BASE + 8, fields)


class FakeSession:
    """A trace that brings `batches`, one a wait, and then does `at_last`."""

    def __init__(self, *batches: list[Entry], at_last: Callable[[], None] = lambda: None) -> None:
        self.reader = self
        self.lost = 0
        self.closed = 0
        self.waits_for_time = False
        self._left = list(batches)
        self._now: list[Entry] = []
        self._at_last = at_last

    def wait(self, timeout_seconds: float | None = None, *others: int) -> bool:
        assert len(others) == 2
        if self.waits_for_time:
            select.select([], [], [], timeout_seconds)
        if self._left:
            self._now += self._left.pop(0)
        else:
            self._at_last()
        return bool(self._now)

    def read(self) -> Iterator[Entry]:
        now, self._now = self._now, []
        yield from now

    def close(self) -> None:
        self.closed += 1


def log_of(*entries: Entry) -> EventLog:
    log = EventLog(FakeSession(list(entries)), now=lambda: (NOON, 0))
    log.reader.wait(0, 0, 0)
    return log


def update_of(*args: Any) -> Update:
    (update,) = log_of(record(*args)).read()
    assert isinstance(update, Update)
    return update


@pytest.mark.parametrize(
    ("pages", "old", "new", "change", "line"),
    [
        (1, (0, 3), (37, 7), Change.GAINED,
         "+ 0x7f0000000000  pfn - -> 0x25  allocated anonymous -> allocated anonymous mapped"),
        (3, (37, 7), (0, 0), Change.LOST,
         "- 0x7f0000000000-0x7f0000003000  3 pages  pfn 0x25..0x27 -> -  allocated anonymous mapped -> -"),
        (2, (1, 7), (40, 7), Change.ALTERED,
         "* 0x7f0000000000-0x7f0000002000  2 pages  pfn 0x1 each -> 0x28..0x29  allocated anonymous mapped"),
        (2, (0, 0), (0, 1), Change.GAINED, "+ 0x7f0000000000-0x7f0000002000  2 pages  pfn -  - -> allocated"),
    ],
)  # fmt: skip
def test_lines(pages: int, old: tuple[int, int], new: tuple[int, int], change: Change, line: str) -> None:
    update = update_of(pages, old, new)
    assert update.change is change
    plain = update_line(update, PID).replace("\x1b[0m", "").split("  ", 1)[1]
    plain = plain[plain.index(change.value + " ") :]
    assert plain == f"{line}  (store/fault@{BASE + 8:#x})"


@pytest.mark.parametrize("columns", [40, 60, 80, 100, 200])
@pytest.mark.parametrize("change", [((1, 7), (0, 0)), ((37, 7), (0, 3)), ((0, 3), (37, 7))])
def test_a_line_is_folded_where_a_word_ends(columns: int, change: tuple[tuple[int, int], tuple[int, int]]) -> None:
    """A terminal of 80 columns broke words in two: `anonym` and `ous`."""
    update = update_of(3, *change)
    whole = click.unstyle(update_line(update, PID))
    folded = click.unstyle(update_line(update, PID, columns))
    assert folded.split() == whole.split()
    lines = folded.split("\n")
    assert len(lines) == 1 or len(whole) > columns
    longest = max(columns, len("00:00:00.000000  - 0x7f0000000000-0x7f0000003000  3 pages"))
    assert all(len(line) <= longest for line in lines)
    assert all(line.startswith("        ") for line in lines[1:])


def test_another_process_is_named_as_the_one_that_did_it() -> None:
    update = update_of(1, (0, 3), (37, 7), (Cause.SYSCALL, Cause.FAULT), Nr.PROCESS_VM_WRITEV)
    assert update_line(update, 1).endswith(f"(process_vm_writev/fault@{BASE + 8:#x} by {PID})")


def test_the_time_is_that_of_the_change() -> None:
    assert update_of(1, (0, 0), (0, 1)).time.timestamp() == pytest.approx((NOON + 5_000_000) / 1e9)


def test_a_run_is_its_pages() -> None:
    pages = list(update_of(3, (1, 7), (40, 7)).unfolded())
    assert [page.after.first for page in pages] == [(BASE + n * PAGE_SIZE, 40 + n, 7) for n in range(3)]
    assert [page.before.first for page in pages] == [(BASE + n * PAGE_SIZE, 1, 7) for n in range(3)]
    assert {page.after.pages for page in pages} == {1}
    assert pages[0].before.frames is Frames.SAME


def test_json_has_numbers() -> None:
    line = json.loads(update_json_line(update_of(1, (0, 3), (37, 7)), PID))
    assert datetime.fromisoformat(line.pop("time")).timestamp() == pytest.approx((NOON + 5_000_000) / 1e9)
    assert line.pop("monotonic") == 0.005
    assert line == {
        "pid": PID, "vaddr": BASE, "old": {"pfn": 0, "flags": 3}, "new": {"pfn": 37, "flags": 7},
        "cause": f"store/fault@{BASE + 8:#x}", "by": PID,
    }  # fmt: skip


def test_how_the_table_was_filled_is_no_change() -> None:
    filling = record(2, (0, 0), (0, 3), (Cause.SYSCALL,), Nr.SHADOWPT_START)
    other = Record(SHADOWPT_START, 1, PID, PID, PID, (), 0, 0, {})
    log = log_of(Comm(PID, 1, "x"), other, filling, Lost(3), record(2, (0, 3), (0, 0)))
    lost, update = log.read()
    assert isinstance(update, Update)
    assert (lost, update.change, log.pages) == (Lost(3), Change.LOST, 2)


class Inspector:
    """Runs the command line on a machine and a trace."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch

    def run(self, machine: FakeMachine, session: FakeSession, *args: str) -> Result:
        machine.at_last = lambda: None
        self._patch.setattr(Process, "attach", lambda _path: machine)
        self._patch.setattr(cli, "open_session", lambda _process: session)
        result = CliRunner().invoke(cli.cli, args)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result


@pytest.fixture
def inspector(monkeypatch: pytest.MonkeyPatch) -> Inspector:
    return Inspector(monkeypatch)


def stop() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_the_table_once_then_changes_then_totals(inspector: Inspector) -> None:
    machine = FakeMachine([[(3, 0), (3, 0)], [(7, 9), (7, 10)]])
    session = FakeSession([record(2, (0, 3), (9, 7))], [Lost(4)], at_last=stop)
    session.lost = 4
    result = inspector.run(machine, session, *RANGE)
    header, _first, _second, change, lost, totals = result.stdout.splitlines()
    assert f"pid {PID}" in header
    assert "0x9..0xa" in change
    assert lost == "… 4 changes lost"
    assert totals == "2 changes of entries, 4 events lost. The table is closed."
    assert (result.exit_code, result.stderr, session.closed) == (0, "", 1)
    assert machine.calls == ["open", "start", "close", "detach"]


def test_all_is_a_line_a_page(inspector: Inspector) -> None:
    session = FakeSession([record(2, (0, 3), (9, 7))], at_last=stop)
    result = inspector.run(FakeMachine([[(3, 0)]]), session, *RANGE, "--all")
    assert sum("store/fault" in line for line in result.stdout.splitlines()) == 2


def test_json_is_an_object_a_line(inspector: Inspector) -> None:
    session = FakeSession([record(2, (0, 3), (9, 7)), Lost(1)], at_last=stop)
    result = inspector.run(FakeMachine([[(3, 0)]]), session, *RANGE, "--json")
    table, first, second, lost = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(table["entries"]) == 4
    assert [one["new"]["pfn"] for one in (first, second)] == [9, 10]
    assert lost == {"lost": 1}
    assert result.stderr == "2 changes of entries, 0 events lost. The table is closed.\n"


def test_the_end_of_the_target_is_the_end(inspector: Inspector) -> None:
    machine = FakeMachine([[(7, 9)], []])
    machine.live_until_table = 1
    gone = record(1, (9, 7), (0, 0), (Cause.EXIT,), 0)
    result = inspector.run(machine, FakeSession([gone]), *RANGE)
    assert result.stdout.splitlines()[-3].endswith("(exit)")
    assert result.stdout.splitlines()[-2:] == [
        f"Process {PID} has exited.",
        "1 changes of entries, 0 events lost. The table is closed.",
    ]
    assert (result.exit_code, machine.calls[-2:]) == (0, ["close", "detach"])


def test_an_interval_brings_prints_too(inspector: Inspector) -> None:
    machine = FakeMachine([[(3, 0)]])
    waits = 0

    def later() -> None:
        nonlocal waits
        waits += 1
        if waits == 5:
            stop()

    session = FakeSession(at_last=later)
    assert inspector.run(machine, session, *RANGE).stdout.count(f"pid {PID} ") == 1
    waits = 0
    session = FakeSession(at_last=later)
    session.waits_for_time = True
    result = inspector.run(FakeMachine([[(3, 0)]]), session, *RANGE, "--interval", "0.01")
    assert result.stdout.count(f"pid {PID} ") > 2


def test_kerneld_going_away(inspector: Inspector) -> None:
    machine = FakeMachine([[(3, 0)]])
    result = inspector.run(machine, FakeSession(at_last=machine.theirs.close), *RANGE)
    assert result.exit_code == Status.DAEMON_GONE
    assert result.stderr == "inspector: kerneld went away, and the table with it\n"


def test_a_refused_table_lets_the_trace_go(inspector: Inspector) -> None:
    machine, session = FakeMachine(), FakeSession()
    machine.refuse = 16
    assert inspector.run(machine, session, *RANGE).exit_code == InspectorStatus.BUSY
    assert session.closed == 1


def test_a_trace_that_is_refused_is_one_line(inspector: Inspector, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = FakeMachine()

    def refuse(_process: Process) -> FakeSession:
        raise Failure(Status.FAILED, "too many traces are open")

    monkeypatch.setattr(Process, "attach", lambda _path: machine)
    monkeypatch.setattr(cli, "open_session", refuse)
    result = CliRunner().invoke(cli.cli, RANGE)
    assert (result.exit_code, result.stderr) == (Status.FAILED, "inspector: too many traces are open\n")
    assert machine.calls == ["detach"]


@pytest.mark.parametrize("args", [[*RANGE, "--once"], [*RANGE, "--contents", hex(BASE)], [str(PID), "--events"]])
def test_events_go_with_a_range_alone(inspector: Inspector, args: list[str]) -> None:
    machine = FakeMachine()
    assert inspector.run(machine, FakeSession(), *args).exit_code == Status.USAGE
    assert machine.calls == []
    machine.close()
