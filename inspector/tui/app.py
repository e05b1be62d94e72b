"""The terminal's program: Textual draws the pictures of `drawing` and `walk`, and its keys move in time.

Knows no picture of its own. A thread of `inspector.source`'s kind brings the chunks of a live record.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Iterable
from typing import ClassVar

from rich.text import Text
from textual import events
from textual.app import App, ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.widgets import OptionList, Static, Tab, Tabs
from textual.widgets.option_list import Option

from inspector import replay
from inspector.player import Player
from inspector.tui import drawing
from inspector.tui.drawing import Line
from inspector.tui.keys import BINDINGS, VIEWS
from inspector.tui.screens import Ask, Help, as_text
from inspector.tui.timeline import bar, compare_lines, event_lines, find_number
from inspector.tui.walk import walk_lines
from shared.recording.address_space import AddressSpace
from shared.recording.chunks import Chunk
from shared.recording.machine import Machine
from shared.recording.search import entry_changes, frame_history
from shared.standard_streams import are_colours_welcome
from shared.stop_signals import StopSignals
from shared.terminal import one_line
from shared.trace.text import cause_text
from shared.uapi.page import PAGE_MASK, PAGE_SIZE

FRAMES_A_SECOND = 15
SPEEDS = (1, 2, 5, 10, 30, 100, 1000)
"""Events a second when it plays."""


class Timeline(Static):
    """The record as a bar; a click shows that moment."""

    def on_click(self, click: events.Click) -> None:
        """Show the moment where the click is."""
        app = self.app
        assert isinstance(app, LiveApp)
        app.seek_part(click.x / max(1, self.size.width - 1))


class Views(Tabs, can_focus=False):
    """The tabs. Keys are the program's own: the arrows move in time."""


class Processes(OptionList, can_focus=False):
    """The processes, for the mouse."""


class LiveApp(App[None]):
    """The whole program."""

    CSS = """
    #top { height: 1; } #tabs { height: 2; } #timeline { height: 1; } #event { height: 1; }
    #processes { width: 24; border: none; padding: 0; } #scroll { width: 1fr; } #view { width: 100%; height: auto; }
    """
    BINDINGS: ClassVar[list[BindingType]] = BINDINGS

    def __init__(
        self,
        player: Player,
        begin: Callable[[Callable[[Iterable[Chunk]], None], Callable[[str], None]], None] | None = None,
        *,
        pid: int | None = None,
        vaddr: int = 0,
        signals: StopSignals | None = None,
    ) -> None:
        """`begin` starts a live record: it gets what takes chunks, and what takes the reason of the end.

        `signals`: one of them ends the program, and the terminal is as it was.
        """
        super().__init__()
        self.player = player
        self.pid = pid or 0
        self.vaddr = vaddr
        self.view = "space"
        self.mark: int | None = None
        self.is_playing = False
        self.half_blocks = are_colours_welcome()
        self.note = ""
        self._begin = begin
        self._signals = signals
        self._ended = "" if begin is not None else "record"
        self._speed = 2
        self._due = 0.0
        self._is_due = True
        self._rests_until = 0.0
        self._pids: list[int] = []
        # Kept, not looked up: while a small screen is in front, a look-up would find none of them.
        self._top_line, self._event_line = Static(id="top"), Static(id="event")
        self._tabs = Views(*(Tab(label, id=name) for name, label in VIEWS), id="tabs")
        self._processes = Processes(id="processes")
        self._scroll = VerticalScroll(id="scroll", can_focus=False)
        self._picture = Static(id="view")
        self._timeline = Timeline(id="timeline")

    def compose(self) -> ComposeResult:
        """Lay out the screen."""
        yield self._top_line
        yield self._tabs
        with Horizontal():
            yield self._processes
            with self._scroll:
                yield self._picture
        yield self._event_line
        yield self._timeline

    def on_mount(self) -> None:
        """Begin to draw, and to take what comes."""
        self.set_interval(1 / FRAMES_A_SECOND, self._tick)
        if self._signals is not None:
            asyncio.get_running_loop().add_reader(self._signals.fileno(), self._signalled)
        if self._begin is not None:
            self._begin(
                lambda chunks: self._from_thread(self._take, list(chunks)),
                lambda why: self._from_thread(self._end, why),
            )

    def _signalled(self) -> None:
        """Some signal has come: one that asks to end, or the terminal has another size."""
        assert self._signals is not None
        os.read(self._signals.fileno(), 64)
        if self._signals.received is not None:
            self.exit()

    def _from_thread(self, function: Callable[..., None], *args: object) -> None:
        with contextlib.suppress(RuntimeError):  # The program is ending.
            self.call_from_thread(function, *args)

    def _take(self, chunks: list[Chunk]) -> None:
        self.player.feed(chunks)
        self._is_due = True

    def _end(self, why: str) -> None:
        self._ended = why
        self._is_due = True

    def _tick(self) -> None:
        if self.is_playing:
            self._due += SPEEDS[self._speed] / FRAMES_A_SECOND
            events = int(self._due)
            self._due -= events
            if events:
                self.player.step(events)
                self._is_due = True
                self.is_playing = self.player.position < self.player.recording.nr_events
        # A large machine takes long to draw. Keys are served between two pictures, most of the time.
        if self._is_due and self._picture.is_attached and time.monotonic() >= self._rests_until:
            self._is_due = False
            begin = time.monotonic()
            self.draw()
            self._rests_until = time.monotonic() + 2 * (time.monotonic() - begin)

    # Drawing

    @property
    def machine(self) -> Machine:
        """The machine of this moment."""
        return self.player.machine

    @property
    def mm(self) -> AddressSpace | None:
        """The chosen process's memory at this moment."""
        return replay.find_mm(self.machine, self.pid)

    def draw(self) -> None:
        """Draw everything."""
        viewer = int(self.player.recording.head.get("viewer") or 0)
        rows = list(drawing.process_lines(self.machine, self.pid, viewer))
        self._pids = [pid for pid, _line in rows]
        if not self.pid and rows:
            living = [pid for pid in self._pids if self.machine.tasks[pid].exit_signal is None]
            self.pid = (living or self._pids)[0]
            rows = list(drawing.process_lines(self.machine, self.pid, viewer))
        self._draw_processes([as_text([line]) for _pid, line in rows])
        width = self._scroll.size.width or 56
        self._picture.update(as_text(self._lines(width)))
        self._top_line.update(as_text([self._top()]))
        self._event_line.update(as_text([self._event()]))
        self._timeline.update(as_text([bar(self.player, self.size.width, self.mark)]))

    def _draw_processes(self, rows: list[Text]) -> None:
        processes = self._processes
        if [option.prompt for option in processes.options] != rows:
            processes.clear_options()
            processes.add_options(Option(row) for row in rows)

    def _lines(self, width: int) -> Iterable[Line]:
        if self.view == "walk":
            return walk_lines(self.mm, self.vaddr)
        if self.view == "memory":
            return drawing.memory_lines(self.machine, width)
        if self.view == "shadow":
            return drawing.shadow_lines(self.machine)
        if self.view == "events":
            return event_lines(self.player, self._scroll.size.height)
        if self.view == "compare":
            return compare_lines(self.player, self.mark, self.pid)
        here = [drawing.entry_line(self.machine, self.mm, self.vaddr)] if self.mm is not None and self.vaddr else []
        first = self._vma_number()
        pages = drawing.space_lines(self.machine, self.mm, width, first, half_blocks=self.half_blocks)
        return [drawing.legend(), *here, *pages]

    def _vma_number(self) -> int:
        """Return the first mapping that is drawn: those before the address are left out only if there are too many."""
        mm = self.mm
        if mm is None or len(mm.vmas) <= drawing.MAX_VMAS:
            return 0
        return sum(start <= self.vaddr for start in mm.vmas) - 1 if self.vaddr else 0

    def _top(self) -> Line:
        player, task = self.player, self.machine.tasks.get(self.pid)
        name = one_line(task.comm) if task is not None else "no process"
        state = (
            "live" if player.is_live and not self._ended else "playing" if self.is_playing else self._ended or "past"
        )
        gaps = "" if self.machine.is_whole or not player.recording.has_begun else "  events are missing"
        where = f"event {player.position} of {player.recording.nr_events}"
        note = f"  {self.note}" if self.note else ""
        return [(f"kerneld  {self.pid} {name}", "address"), (f"  {state}  {where}{gaps}{note}   ? help", "quiet")]

    def _event(self) -> Line:
        record = self.player.last_event() if self.player.recording.has_begun else None
        if record is None:
            return [("The beginning of the record.", "quiet")]
        cause = cause_text(record)
        return [(f"{record.event.name} ", "name"), (cause, ""), (f"  {record.event.about}", "quiet")]

    # Keys

    def redraw(self, note: str = "") -> None:
        """Draw soon, with a note in the first line."""
        self.note = note
        self._is_due = True

    def action_view(self, name: str) -> None:
        """Show a view."""
        self._tabs.active = name

    def on_tabs_tab_activated(self, tabs: Tabs.TabActivated) -> None:
        """Show the view of a tab."""
        self.view = tabs.tab.id or "space"
        self.redraw()

    def on_option_list_option_selected(self, chosen: OptionList.OptionSelected) -> None:
        """Choose the process that was clicked."""
        if chosen.option_index < len(self._pids):
            self.pid = self._pids[chosen.option_index]
            self.redraw()

    def action_step(self, events: int) -> None:
        """Go on or back by an event."""
        self.is_playing = False
        self.player.step(events)
        self.redraw()

    def action_step_call(self, direction: int) -> None:
        """Go on or back by a call or a fault."""
        self.is_playing = False
        self.player.step_call(direction)
        self.redraw()

    def action_begin(self) -> None:
        """Show the beginning."""
        self.player.seek(self.player.recording.first_event)
        self.redraw()

    def action_now(self) -> None:
        """Follow what happens now."""
        self.is_playing = False
        self.player.go_live()
        self.redraw()

    def seek_part(self, part: float) -> None:
        """Show the moment at a part of the record, from 0 to 1."""
        recording = self.player.recording
        self.player.seek(recording.first_event + round(part * (recording.nr_events - recording.first_event)))
        self.redraw()

    def action_play(self) -> None:
        """Play, or pause."""
        self.is_playing = not self.is_playing
        if self.is_playing and self.player.position >= self.player.recording.nr_events:
            self.player.seek(self.player.recording.first_event)
        self.player.is_live = False
        self.redraw(f"{SPEEDS[self._speed]} events a second")

    def action_speed(self, change: int) -> None:
        """Play faster or slower."""
        self._speed = max(0, min(self._speed + change, len(SPEEDS) - 1))
        self.redraw(f"{SPEEDS[self._speed]} events a second")

    def action_process(self, change: int) -> None:
        """Choose the next process, or the one before."""
        if self._pids:
            at = self._pids.index(self.pid) if self.pid in self._pids else 0
            self.pid = self._pids[(at + change) % len(self._pids)]
        self.redraw()

    def action_page(self, change: int) -> None:
        """Go to the next page, or the one before."""
        self.vaddr = max(0, min((self.vaddr & PAGE_MASK) + change * PAGE_SIZE, (1 << 47) - PAGE_SIZE))
        self.redraw()

    def action_mapping(self, change: int) -> None:
        """Go to the next mapping, or the one before."""
        starts = sorted(self.mm.vmas) if self.mm is not None else []
        ahead = [start for start in starts if start > self.vaddr] if change > 0 else starts[::-1]
        self.vaddr = next((start for start in ahead if change > 0 or start < self.vaddr), self.vaddr)
        self.redraw()

    def action_mark(self) -> None:
        """Set the mark at this moment."""
        self.mark = self.player.position
        self.redraw(f"mark at event {self.mark}")

    def action_half_blocks(self) -> None:
        """Draw large mappings by letters, or by half blocks again."""
        self.half_blocks = not self.half_blocks
        self.redraw()

    def action_compare(self) -> None:
        """Compare the mark with this moment."""
        self.action_view("compare")
        self.redraw()

    def action_scroll(self, pages: int) -> None:
        """Scroll by a screen."""
        self._scroll.scroll_relative(y=pages * max(1, self._scroll.size.height - 1), animate=False)

    def action_help(self) -> None:
        """Show the keys."""
        self.push_screen(Help())

    def action_go(self) -> None:
        """Ask for an address."""
        self.push_screen(Ask("Go to an address, or to the name of a mapping"), self._go)

    def _go(self, said: str | None) -> None:
        if said:
            names = {} if self.mm is None else {
                replay.vma_name(self.machine, self.mm, vma): vma.start for vma in self.mm.vmas.values()
            }  # fmt: skip
            found = next((start for name, start in names.items() if said in (name, name.rpartition("/")[2])), None)
            self.vaddr = found if found is not None else parse_number(said) or self.vaddr
            self.redraw("" if found is not None or parse_number(said) is not None else f"no address: {one_line(said)}")

    def action_search(self) -> None:
        """Ask for a page or a frame."""
        self.push_screen(Ask("When did this change? An address, or: frame 0x45"), self._search)

    def _search(self, said: str | None) -> None:
        if not said:
            return
        word, _space, rest = said.partition(" ")
        number = parse_number(rest if word == "frame" else said)
        if number is None:
            self.redraw(f"no number: {one_line(said)}")
            return
        recording, at = self.player.recording, self.player.position
        if word == "frame":
            found = next((at for at, _record in frame_history(recording, number, at)), None)
        else:
            self.vaddr = number & PAGE_MASK
            mm = find_number(self.player, self.pid)
            changes = entry_changes(recording, mm, self.vaddr, self.vaddr + PAGE_SIZE, at)
            found = next((change.number for change in changes), None)
        if found is not None:
            self.player.seek(found + 1)
        self.redraw("" if found is not None else "nothing after this moment")


def parse_number(text: str) -> int | None:
    """Return a hexadecimal number, with 0x or without; None for other text."""
    try:
        return int(text, 16)
    except ValueError:
        return None
