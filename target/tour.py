"""The runner plays scenarios. Only the runner prints and pauses.

Knows no scenario by name. It unmaps the window after each scenario, so that the next one finds it empty.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Callable, Sequence
from contextlib import closing

from target.inspector_command import also_command, follow_command, inspector_command
from target.pace import Pace
from target.scenario import Beat, Note, Scenario, Step, Watch
from target.stage import Stage

_WATCH_PAUSES = 3
"""The number of pauses after a range to watch: a person has to start an inspector."""
_MAX_COLUMNS = 110
_STEP_INDENT, _TEXT_INDENT = "  ", "      "


class Tour:
    """Plays scenarios on one stage, at one pace."""

    def __init__(
        self,
        stage: Stage,
        pace: Pace,
        say: Callable[[str], None],
        socket_path: str | None = None,
        *,
        is_followed: bool = False,
    ) -> None:
        """Play on `stage` and print by `say`. `socket_path` is the path of kerneld's socket, None for the default.

        With `is_followed` an inspector's window moves along: its command is printed once, and no pause is longer.
        """
        self._stage = stage
        self._pace = pace
        self._say = say
        self._socket_path = socket_path
        self._columns = min(shutil.get_terminal_size((_MAX_COLUMNS, 24)).columns, _MAX_COLUMNS)
        self._steps = 0
        self._is_followed = is_followed

    def begin(self, in_window: bool = True) -> None:
        """Print the pid, and the command that follows the tour, or with `in_window` the one that watches its window.

        If the tour is not followed, then wait, so that a person can start an inspector.
        """
        stage = self._stage
        pid = stage.process.pid
        self._say(f"target: process {pid}, attached to kerneld.\n")
        if self._is_followed:
            words = "Follow the tour from another terminal. The window moves to heap, stack, child and image:"
            self._say_command(words, follow_command(pid, self._socket_path))
            return
        if not in_window:
            return
        window = stage.window
        self._say_watch(Watch(pid, window.start, window.end, f"the window of the tour, {window.pages} pages"))
        self._pace.wait(_WATCH_PAUSES)

    def play_all(self, scenarios: Sequence[Scenario]) -> None:
        """Play `scenarios` one after another. Raises the exceptions of the steps and of the pause."""
        for number, scenario in enumerate(scenarios, 1):
            self._say(f"\n== {number}/{len(scenarios)} {scenario.name}: {scenario.title} ==\n")
            self._say_wrapped(scenario.teaches, "", "")
            self.play(scenario)

    def play(self, scenario: Scenario) -> None:
        """Play one scenario and unmap its mappings in the window, unless the process ends with it."""
        # The generator is closed in any case: a scenario may have a waiting child, or an open file.
        with closing(scenario.play(self._stage)) as beats:
            for beat in beats:
                self._play_beat(beat)
        if not scenario.ends_process and self._stage.window_lines():
            self._play_beat(Step("munmap of what is left in the window: its entries lose flags and pfn."))
            self._stage.clear_window()

    def _play_beat(self, beat: Beat) -> None:
        match beat:
            case Step(text):
                self._steps += 1
                head = f"{_STEP_INDENT}{self._steps}. "
                self._say_wrapped(text, head, _TEXT_INDENT)
                self._pace.wait()
            case Note(text):
                for line in text.splitlines():
                    self._say_wrapped(line, f"{_TEXT_INDENT}> ", f"{_TEXT_INDENT}  ")
            case Watch():
                self._say_watch(beat)
                self._pace.wait(1 if self._is_followed else _WATCH_PAUSES)

    def _say_watch(self, watch: Watch) -> None:
        where = f"{watch.start:#x} to {watch.end:#x}"
        if self._is_followed:
            # The inspector gets there by itself, with the first change.
            self._say_wrapped(f"Next: {watch.what}, {where}.", _STEP_INDENT, _TEXT_INDENT)
        else:
            command = inspector_command(watch.pid, watch.start, watch.end, self._socket_path)
            self._say_command(f"Watch {where} from another terminal, {watch.what}:", command)
        if watch.also:
            command = also_command(watch.also, watch.start, watch.end, watch.pid, self._socket_path)
            self._say_command("Both processes side by side:", command)

    def _say_command(self, words: str, command: str) -> None:
        self._say_wrapped(words, _STEP_INDENT, _TEXT_INDENT)
        self._say(f"{_TEXT_INDENT}{command}\n")

    def _say_wrapped(self, text: str, first: str, rest: str) -> None:
        # An address that is broken at the end of a line could not be copied. Lines of /proc/self/maps keep their
        # columns.
        wrapped = textwrap.wrap(
            text,
            self._columns,
            initial_indent=first,
            subsequent_indent=rest,
            break_long_words=False,
            break_on_hyphens=False,
            drop_whitespace=True,
        )
        self._say("\n".join(wrapped) + "\n")
