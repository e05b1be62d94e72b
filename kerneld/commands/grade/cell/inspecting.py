"""Runs the submission's inspector against our target: what it does in the kernel, and what it prints and when.

Owns the course of the run. `judging` compares what was printed with what the table held.
"""

from __future__ import annotations

import bisect
import itertools
import re
import time
from dataclasses import dataclass, field

from kerneld.commands.grade.cell.launcher import Launcher
from kerneld.commands.grade.cell.machine import Machine, private_machine
from kerneld.commands.grade.cell.program import CTRL_C, Chunk, Program
from kerneld.commands.grade.cell.puppet import BASE, LARGE_BASE, LARGE_PAGES, PAGES, STEADY, Puppet
from kerneld.commands.grade.cell.reading import Window, plain, segments
from kerneld.commands.grade.cell.states import Held
from shared.trace.events import SHADOWPT_CLOSE, SHADOWPT_OPEN, SHADOWPT_START, Cause
from shared.trace.record import Record
from shared.uapi.page import PAGE_SIZE

_OPEN_SECONDS = 15.0
_SHORT_SECONDS = 15.0
"""Of a program that should end at once: on a busy host it may have its first turn after seconds."""
_PRINT_SECONDS = 3.2
"""Two prints come within this time, if there is one a second."""
_SETTLE_SECONDS = 0.12
_END_SECONDS = 3.0
_CLOSE_SECONDS = 1.0
_TURN_SECONDS = 0.02
_SECOND = 10**9
_GAP = _SECOND // 7
_SAME_PRINT = _SECOND // 50
_NO_PROCESS = 4_194_303
"""The largest pid of Linux: nobody has it in a fresh namespace, and seldom elsewhere."""


@dataclass(frozen=True, slots=True)
class Period:
    """A time in which the table did not change: what it held, and the last print."""

    name: str
    held: dict[int, Held]
    text: str


@dataclass(slots=True)
class Inspection:
    """What was seen of the inspector."""

    opened: Record | None = None
    started: Record | None = None
    closed: Record | None = None
    periods: list[Period] = field(default_factory=list)
    hits: list[int] = field(default_factory=list)
    """When the steady page was printed, in nanoseconds."""
    text: str = ""
    status_before: int | None = None
    """The status, if it ended before Ctrl+C."""
    status: int | None = None
    is_ended: bool = False


@dataclass(frozen=True, slots=True)
class Short:
    """What was seen of a program that should end at once."""

    arguments: tuple[str, ...]
    text: str
    status: int | None


WINDOW = Window(BASE, PAGES)
LARGE_WINDOW = Window(LARGE_BASE, LARGE_PAGES)


def inspect(launcher: Launcher) -> tuple[Inspection, Inspection, list[Short]]:
    """Run the inspector: through all changes; with the largest range; with wrong arguments, and for no process.

    Raises TooMuch, MachineError, ProgramError, OSError.
    """
    with private_machine(launcher.room) as machine:
        puppet = Puppet(launcher.room, machine.socket)
        try:
            shorts = [_run_short(launcher, machine, arguments) for arguments in _wrong_arguments(puppet.pid)]
            large = _run_large(launcher, machine, puppet)
            return _run_through(launcher, machine, puppet), large, shorts
        finally:
            puppet.end()


def _wrong_arguments(pid: int) -> list[tuple[str, ...]]:
    bounds = (f"{WINDOW.start:#x}", f"{WINDOW.end:#x}")
    return [(), (str(pid),), (str(_NO_PROCESS), *bounds)]


def _run_short(launcher: Launcher, machine: Machine, arguments: tuple[str, ...]) -> Short:
    program = launcher.start(machine, "inspector", arguments)
    try:
        program.wait(_SHORT_SECONDS)
        return Short(arguments, program.text, program.status if not program.is_alive else None)
    finally:
        program.end()
        machine.read()


def _run_through(launcher: Launcher, machine: Machine, puppet: Puppet) -> Inspection:
    seen = Inspection()
    program = launcher.start(machine, "inspector", [str(puppet.pid), f"{WINDOW.start:#x}", f"{WINDOW.end:#x}"])
    try:
        first = len(machine.records)
        if _wait_until_started(machine, program, seen, first):
            watch = _Watch(machine, program, seen)
            watch.period("start")
            for step in ("grow", "shrink"):
                puppet.tell(step)
                watch.period(step)
            puppet.end()
            _wait_until_empty(machine)
            watch.period("exit")
        _press_ctrl_c(machine, program, seen)
    finally:
        program.end()
    seen.text = plain(program.text)
    seen.hits = _hits(program.chunks)
    return seen


def _wait_until_empty(machine: Machine) -> None:
    """Wait until the kernel has taken notice of the end of our target."""
    end = time.monotonic() + _CLOSE_SECONDS
    while machine.table and time.monotonic() < end:
        machine.read()
        time.sleep(_TURN_SECONDS)


def _run_large(launcher: Launcher, machine: Machine, puppet: Puppet) -> Inspection:
    """Watch 2,048 pages until the last one is printed."""
    seen = Inspection()
    program = launcher.start(
        machine, "inspector", [str(puppet.pid), f"{LARGE_WINDOW.start:#x}", f"{LARGE_WINDOW.end:#x}"]
    )
    try:
        first = len(machine.records)
        if _wait_until_started(machine, program, seen, first):
            last = _pattern(LARGE_WINDOW.address(LARGE_PAGES - 1))
            program.wait(_PRINT_SECONDS, lambda: last.search(program.text[-(1 << 16) :]) is not None)
            program.wait(_SETTLE_SECONDS)
            machine.read()
            held = {(vaddr - LARGE_BASE) // PAGE_SIZE: entry for vaddr, entry in machine.table.items()}
            seen.periods.append(Period("large", held, plain(program.text)))
        _press_ctrl_c(machine, program, seen)
    finally:
        program.end()
    seen.text = plain(program.text)
    return seen


def _wait_until_started(machine: Machine, program: Program, seen: Inspection, first: int) -> bool:
    """Wait for open and start, as the kernel sees them. Return whether both came."""

    def look() -> bool:
        machine.read()
        for record in machine.records[first:]:
            if record.pid != program.pid:
                continue
            if record.event is SHADOWPT_OPEN and (seen.opened is None or seen.opened.fields["ret"] < 0):
                seen.opened = record
            elif record.event is SHADOWPT_START:
                seen.started = record
        return seen.started is not None or (seen.opened is not None and seen.opened.fields["ret"] < 0)

    program.wait(_OPEN_SECONDS, look)
    look()
    return seen.started is not None and program.is_alive


def _press_ctrl_c(machine: Machine, program: Program, seen: Inspection) -> None:
    """Press Ctrl+C, wait for the end, and note whether the kernel has seen the call that closes."""
    if not program.is_alive:
        seen.status_before = program.status
    first = len(machine.records)
    program.press(CTRL_C)
    seen.is_ended = program.wait(_END_SECONDS)
    seen.status = program.status
    is_open = seen.opened is not None and seen.opened.fields["ret"] == 0
    end = time.monotonic() + _CLOSE_SECONDS
    while is_open and seen.closed is None and time.monotonic() < end:
        machine.read()
        closes = [one for one in machine.records[first:] if one.event is SHADOWPT_CLOSE and one.pid == program.pid]
        seen.closed = next((one for one in closes if _is_by_call(one)), None)
        if closes:
            return
        time.sleep(_TURN_SECONDS)


def _is_by_call(record: Record) -> bool:
    return Cause.SYSCALL in record.causes and Cause.EXIT not in record.causes


class _Watch:
    """Waits in each period until the print after the next one is there."""

    def __init__(self, machine: Machine, program: Program, seen: Inspection) -> None:
        self._machine = machine
        self._program = program
        self._seen = seen

    def period(self, name: str) -> None:
        """Wait, and note what the table held and what was printed."""
        self._machine.read()
        first = len(self._program.chunks)
        held = {(vaddr - BASE) // PAGE_SIZE: entry for vaddr, entry in self._machine.table.items()}
        self._program.wait(_PRINT_SECONDS, lambda: len(_hits(self._program.chunks[first:])) >= 2)
        self._program.wait(_SETTLE_SECONDS)
        text = _last_print(self._program.chunks[first:])
        full = {index: held.get(index, (0, 0)) for index in range(PAGES)}
        self._seen.periods.append(Period(name, full, plain(text)))


def _pattern(address: int) -> re.Pattern[str]:
    """Return what finds an address in a text: hexadecimal or decimal."""
    return re.compile(rf"(?<![0-9A-Za-z])(?:0x)?0*(?:{address:x}|{address})(?![0-9A-Za-z])", re.IGNORECASE)


_STEADY = _pattern(WINDOW.address(STEADY))


def _hits(chunks: list[Chunk]) -> list[int]:
    """Return when the steady page was printed. A page that is printed twice at once counts once.

    Where addresses are not printed, it is when something was printed after a pause.
    """
    found: list[int] = []
    ends = list(itertools.accumulate(len(chunk.text) for chunk in chunks))
    for match in _STEADY.finditer("".join(chunk.text for chunk in chunks)):
        when = chunks[bisect.bisect_left(ends, match.end())].time
        if not found or when - found[-1] > _SAME_PRINT:
            found.append(when)
    if found:
        return found
    return [two.time for one, two in itertools.pairwise(chunks) if two.time - one.time > _GAP]


def _last_print(chunks: list[Chunk]) -> str:
    """Return the text of the last print: what follows a pause, and has the steady page's last line in it.

    A busy host may stop a program in the middle of a print, so that this has a pause too. So of several pauses it is
    the last one behind which there are as many pages as behind any. Where the steady page never comes, it is what
    follows the first pause.
    """
    hits = _hits(chunks)
    begins = [
        at
        for at in range(1, len(chunks))
        if chunks[at].time - chunks[at - 1].time > _GAP and (not hits or hits[0] < chunks[at].time <= hits[-1])
    ]
    if begins:
        texts = ["".join(chunk.text for chunk in chunks[at:]) for at in reversed(begins)]
        return max(texts, key=_count_pages)
    if len(hits) < 2:
        return "".join(chunk.text for chunk in chunks)
    # It prints without a pause: everything but the line that it is printing.
    begin = next(at for at, chunk in enumerate(chunks) if chunk.time >= hits[0]) + 1
    text = "".join(chunk.text for chunk in chunks[begin:])
    return text[: text.rfind("\n") + 1] or text


def _count_pages(text: str) -> int:
    return len(segments(plain(text), WINDOW))
