"""The target and a live inspector of it, step by step, in one output: for the demonstration, and for `kerneld quiz`.

Acts like a person at two terminals: presses Enter for each step of the target, and shows the inspector's next print.
Knows only the output of the programs. Run as a program (`python -m target.scene SCENARIO …`), it shows scenarios on the
kerneld that $KERNELD_SOCKET names, and checks nothing.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import NoReturn

import click

from shared.interrupts import ending_by_signals
from shared.program import CommandLine, run_program
from shared.standard_streams import are_colours_welcome
from target.demo_inspector import LiveInspector, Print, pick_shown
from target.demo_program import DemoError, Program
from target.pace import PROMPT

_SCENARIO_LINE = re.compile(r"^== \d+/\d+ ([a-z-]+): ")
_STEP_LINE = re.compile(r"^  \d+\. ")
_COMMAND_LINE = re.compile(r"inspector (\d+) 0x[0-9a-f]+ 0x[0-9a-f]+$")
_COLOURS = {"kerneld": "magenta", "target": "cyan", "inspector": "green", "C program": "yellow"}

Check = Callable[[str, int, Sequence[Print]], None]
"""What is done after the step of a scenario, with its number and the inspector's prints since. Raises DemoError."""


class Scene:
    """A target, and an inspector of the range that it names last."""

    def __init__(self, environment: Mapping[str, str], programs: ExitStack, check: Check) -> None:
        """Run programs in `environment`; `programs` ends those that still run at the end."""
        self._environment = environment
        self._programs = programs
        self._check = check
        self._inspector: LiveInspector | None = None
        self._scenario = ""
        self._steps_done = 0

    def play(self, scenarios: Sequence[str]) -> None:
        """Play scenarios of the target to its end. Raises DemoError."""
        chosen = [word for name in scenarios for word in ("--scenario", name)]
        self._play(self.start("target", ["target", "--step", *chosen]))

    def start(self, module: str, words: Sequence[str]) -> Program:
        """Start a program of this package by its name, and show its command."""
        show(module, ["$ " + shlex.join(words)])
        program = Program(module, [sys.executable, "-P", "-m", *words], self._environment)
        self._programs.callback(program.kill)
        return program

    def _play(self, target: Program) -> None:
        """Press Enter at each prompt of the target until it ends, and show the table after each step."""
        stepping = False
        while True:
            done, announced, ended = _read_block(target)
            show("target", done)
            if stepping:
                self._show_table()
            if not ended:
                self._watch_if_told(done, target.pid)
            show("target", announced)
            for line in announced:
                if found := _SCENARIO_LINE.match(line):
                    self._scenario, self._steps_done = found[1], 0
            if ended:
                target.wait()
                return
            stepping = any(_STEP_LINE.match(line) for line in announced)
            target.press_enter()

    def _show_table(self) -> None:
        """Show the inspector's print after the last step, and check it. Raises DemoError."""
        if self._inspector is None:
            raise DemoError("the target has named no range to watch")
        # The next print may have begun before the step. The print after it has not.
        prints = self._inspector.next_prints(2)
        shown = pick_shown(prints)
        show("inspector", shown.lines if shown.changed else [shown.lines[0]])
        self._steps_done += 1
        self._check(self._scenario, self._steps_done, prints)

    def _watch_if_told(self, lines: Sequence[str], pid: int) -> None:
        """Start the inspector of process `pid` with the command in `lines`, if the target has printed one."""
        command = next((line for line in lines if (found := _COMMAND_LINE.search(line)) and int(found[1]) == pid), None)
        if command is None:
            return
        if self._inspector is None:
            say("The inspector, in another terminal, by the command that the target has printed.")
        else:
            say("There is one table at a time: Ctrl+C ends this inspector, and another watches the new range.")
            self.close_inspector()
        words = shlex.split(command)
        while "=" in words[0]:
            # The children of this program already have the environment that the command sets.
            words.pop(0)
        show("inspector", ["$ " + shlex.join(words)])
        show("inspector", self.watch(words).first.lines)

    def watch(self, words: Sequence[str]) -> LiveInspector:
        """Start an inspector by its command, and return it. Raises DemoError if it does not print."""
        self._inspector = LiveInspector(words, self._environment)
        self._programs.callback(self._inspector.kill)
        return self._inspector

    def close_inspector(self) -> None:
        """End the inspector by Ctrl+C, and show its last line. Raises DemoError if there is none."""
        if self._inspector is None:
            raise DemoError("the target has named no range to watch")
        show("inspector", ["^C", *self._inspector.close()])
        self._inspector = None


def say(text: str) -> None:
    """Print a line of the demonstration itself."""
    click.secho(f"\n=== {text}", bold=True)


def show(name: str, lines: Sequence[str]) -> None:
    """Print lines of a program, with its name in front."""
    head = click.style(f"{name:>9} |", fg=_COLOURS[name])
    for line in lines:
        click.echo(f"{head} {line}".rstrip())


def _read_block(target: Program) -> tuple[list[str], list[str], bool]:
    """Return the lines up to the prompt: the result of the last step, the announcement, and whether the target has
    ended."""
    done: list[str] = []
    announced: list[str] = []
    while (line := target.read_line()) is not None:
        if line.strip() == PROMPT:
            return done, announced, False
        starts = not line or _STEP_LINE.match(line)
        (announced if announced or starts else done).append(line)
    return done, announced, True


@click.command("scene", cls=CommandLine, help="Show scenarios of the target with an inspector beside it.")
@click.argument("scenarios", nargs=-1, required=True)
def cli(scenarios: tuple[str, ...]) -> None:
    if not are_colours_welcome():
        click.get_current_context().color = False
    with ending_by_signals("scene"), ExitStack() as programs:
        scene = Scene(os.environ, programs, lambda _scenario, _step, _prints: None)
        scene.play(scenarios)
        scene.close_inspector()


def main() -> NoReturn:
    """Show the scenarios. The exit status is 1 where a program of the scene has failed, with one line."""
    run_program(cli)


if __name__ == "__main__":
    main()
