"""What happened, in lines: the events around a moment, two moments compared, the record as a bar. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from inspector import replay
from inspector.player import Player
from inspector.tui.drawing import Line
from shared.trace.state_events import MM_LAYOUT
from shared.trace.text import cause_text


def bar(player: Player, width: int, mark: int | None) -> Line:
    """Return the record as a line of this width, with the moment and the mark in it."""
    recording = player.recording
    width = max(10, width)
    whole = max(1, recording.nr_events - recording.first_event)
    done = (player.position - recording.first_event) * width // whole
    cells = ["━" if place < done else "─" for place in range(width)]
    if mark is not None:
        cells[max(0, min(width - 1, (mark - recording.first_event) * width // whole))] = "◆"
    return [("".join(cells), "rights")]


def event_lines(player: Player, height: int) -> Iterable[Line]:
    """Yield the events around the moment that is shown, each with its number, its process and its cause."""
    height = max(5, height)
    first = max(player.recording.first_event, player.position - height // 2)
    for number, record in player.recording.records(first, first + height):
        is_last = number == player.position - 1
        name = record.event.name.partition(":")[2]
        line = f"{'▸' if is_last else ' '}{number:>8} {record.owner or record.pid:>8} {name:<18} {cause_text(record)}"
        yield [(line, "address" if is_last else "")]


def compare_lines(player: Player, mark: int | None, pid: int) -> Iterable[Line]:
    """Yield what became of a process's memory between the mark and the moment that is shown."""
    if mark is None:
        yield [("Press m at one moment and c at another.", "quiet")]
        return
    before = player.recording.machine(mark)
    old, new = replay.find_mm(before, pid), replay.find_mm(player.machine, pid)
    if old is None or new is None:
        yield [("The process is not there at both moments.", "quiet")]
        return
    yield [(f"From event {mark} to event {player.position}: + came  - went  * changed  > moved", "address")]
    for line in replay.compare_lines((before, player.machine), (old, new), None):
        yield [(line, "")]


def find_number(player: Player, pid: int) -> int:
    """Return the number of the address space that a process has, or that it gets after this moment; 0 for none."""
    task = player.machine.tasks.get(pid)
    if task is not None and task.mm:
        return task.mm
    layouts = player.recording.records(player.position, None, frozenset({MM_LAYOUT.number}))
    return next((record.fields["mm"] for _number, record in layouts if record.fields["pid"] == pid), 0)
