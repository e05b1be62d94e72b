"""Runs the submission's target inside the machine, and has our inspector open a table of what it changes.

Owns the choice of the range: the one that the target prints, else the memory that it has mapped last.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from kerneld.commands.grade.cell.changes import Changes
from kerneld.commands.grade.cell.launcher import Launcher
from kerneld.commands.grade.cell.machine import Machine, private_machine
from kerneld.commands.grade.cell.our_inspector import OurInspector, Range
from kerneld.commands.grade.cell.program import CTRL_C, Program, ending_words
from kerneld.commands.grade.cell.reading import numbers, plain
from kerneld.commands.grade.model import Finding, failed, judged, skipped
from kerneld.commands.grade.rows import ROWS, Part
from shared.trace.events import SPTE_UPDATE
from shared.uapi.page import PAGE_SIZE, page_align
from shared.uapi.shadowpt import MAX_SPT_RANGE

_ENTER_SECONDS = 1.0
"""Enter is pressed so often, for a target that waits for it."""
_OWN_END_SECONDS = 3.0
"""A target that has shown everything has this time to end by itself."""
_LAST_EVENTS_SECONDS = 0.1
_END_SECONDS = 3.0
_ROWS = tuple(row.name for row in ROWS if row.part is Part.TARGET)
_UNTIL = frozenset(_ROWS) - {"target_exit", "target_visible"}


def watch(launcher: Launcher) -> tuple[list[Finding], str]:
    """Run the target, and return the findings and what it printed.

    Raises TooMuch, MachineError, ProgramError, OSError.
    """
    if not launcher.runs_inside:
        why = "this host cannot run programs inside kerneld, so the kernel does not see the calls of the target"
        return [skipped(row, why) for row in _ROWS], ""
    with private_machine(launcher.room) as machine:
        program = launcher.start(machine, "target")
        changes, inspector = Changes(program.pid), OurInspector(launcher.room, machine.socket)
        try:
            _run(launcher, machine, program, changes, inspector)
            is_ended = _end(machine, program, changes, inspector)
        finally:
            program.end()
            inspector.end()
        return list(_judge(program, changes, inspector, is_ended=is_ended)), plain(program.text)


def _run(launcher: Launcher, machine: Machine, program: Program, changes: Changes, inspector: OurInspector) -> None:
    end = time.monotonic() + launcher.room.limits.target_seconds
    entered = time.monotonic()
    while time.monotonic() < end and program.is_alive:
        program.wait(_ENTER_SECONDS / 20)
        _read(machine, changes, inspector)
        bounds = _choose(changes, plain(program.text))
        if bounds is not None and changes.exit_signal is None:
            inspector.follow(program.pid, bounds)
        if time.monotonic() - entered > _ENTER_SECONDS:
            entered = time.monotonic()
            program.press(b"\n")
        if changes.seen.keys() >= _UNTIL and not _why_not_visible(changes, inspector):
            return


def _end(machine: Machine, program: Program, changes: Changes, inspector: OurInspector) -> bool:
    """Wait a little for the program's own end, then press Ctrl+C. Return whether it has ended."""
    if not program.wait(_OWN_END_SECONDS):
        program.press(CTRL_C)
        program.wait(_END_SECONDS)
    is_ended = not program.is_alive
    _read_last(machine, changes, inspector, is_ended=is_ended)
    return is_ended


def _read_last(machine: Machine, changes: Changes, inspector: OurInspector, *, is_ended: bool) -> None:
    """Read until the events end: on a busy host the kernel may notice an end late, and take the memory down later."""
    deadline = time.monotonic() + _END_SECONDS
    while time.monotonic() < deadline:
        time.sleep(_LAST_EVENTS_SECONDS)
        if not _read(machine, changes, inspector) and (changes.exit_signal is not None or not is_ended):
            return


def _read(machine: Machine, changes: Changes, inspector: OurInspector) -> int:
    """Take the new events over, and return how many there were."""
    records = machine.read()
    for record in records:
        if record.event is SPTE_UPDATE:
            inspector.add(record)
        else:
            changes.add(record)
    return len(records)


def _choose(changes: Changes, text: str) -> Range | None:
    """Return the range for our inspector: what the target has printed of its own memory, else what it mapped last."""
    printed = sorted(
        value for number in numbers(text) for value in number.values if changes.is_own(value) or _is_end(changes, value)
    )
    if printed and changes.is_own(printed[0]):
        start = printed[0] & -PAGE_SIZE
        own_end = next(end for first, end in changes.own if first <= printed[0] < end)
        ends = [value for value in printed if start < value <= start + MAX_SPT_RANGE]
        return start, max(own_end, page_align(ends[-1])) if ends else own_end
    return changes.own[-1] if changes.own else None


def _is_end(changes: Changes, value: int) -> bool:
    return any(end == value for _start, end in changes.own)


def _judge(program: Program, changes: Changes, inspector: OurInspector, *, is_ended: bool) -> Iterator[Finding]:
    if not changes.has_begun:
        why = f"the program {ending_words(program.status)} before its own text ran: {plain(program.text).strip()[:200]}"
        yield from (failed(row, why) for row in _ROWS)
        return
    for row in _ROWS:
        if row == "target_exit":
            yield judged(row, _why_not_exit(program, is_ended=is_ended), f"it {ending_words(program.status)}")
        elif row == "target_visible":
            where = "" if inspector.range is None else f" from {inspector.range[0]:#x} on"
            seen = f"our inspector saw {len(inspector.gained) + len(inspector.lost)} changes{where}"
            yield judged(row, _why_not_visible(changes, inspector), seen)
        else:
            seen = changes.seen.get(row, "")
            yield judged(row, "" if seen else "no event of this kind", seen)


def _why_not_exit(program: Program, *, is_ended: bool) -> str:
    if not is_ended:
        return "it still ran three seconds after Ctrl+C"
    status = program.status
    if status is not None and os.WIFSIGNALED(status) and os.WTERMSIG(status) != 2:
        return f"it {ending_words(status)}"
    return ""


def _why_not_visible(changes: Changes, inspector: OurInspector) -> str:
    if inspector.range is None:
        return inspector.refusal or "the program mapped no memory that an inspector could open in time"
    start, end = inspector.range
    where = f"in the table of {start:#x} to {end:#x}"
    if not inspector.gained and not inspector.lost:
        return f"no entry changed {where}"
    came, went, moments = changes.count(start, end)
    if not came or not went:
        return f"no frame {'went' if came else 'came'} {where}"
    if moments < 2:
        return f"there was no pause of 0.4 s between the changes {where}"
    return ""
