"""The demonstration (`make demo`): kerneld, the target and the inspector as three real processes, in some ten seconds.

It acts like a person at three terminals. It starts kerneld, starts the target, and pastes the inspector's command that
the target prints. It presses Enter for each step, shows the inspector's prints, and ends both by Ctrl+C. It checks
everything that it shows. The first failed check ends it with one line and status 1. It knows only the output and the
exit status of the programs.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

import click

from shared.interrupts import ending_by_signals
from shared.private_directory import private_directory
from shared.program import CommandLine, run_program
from shared.standard_streams import are_colours_welcome
from target import demo_inside
from target.demo_inspector import Print, pick_shown
from target.demo_program import DemoError, Program
from target.scenarios.files import CHANGED, FILE_NAME
from target.scene import Scene, say, show

HELP = """Run kerneld, a target and an inspector together. Show the output of each, and check it.

The demonstration takes some ten seconds. It uses a temporary directory and removes it.

\b
Exit status:
  0  every check has passed        1  a check has failed: one line says which        2  wrong usage
"""

SCENARIOS = ("demand", "hole", "file-shared", "fork", "exec", "exit")

ANY, SOME = -1, -2
EXPECTED: dict[str, tuple[tuple[int, int, int, int], ...]] = {
    "demand": ((8, 8, 0, 8), (8, 8, 1, 1), (8, 8, 3, 2), (8, 8, 3, 1), (0, 0, 0, 8)),
    "hole": ((8, 8, 8, ANY), (6, 6, 6, 2), (8, 8, 6, 2), (0, 0, 0, 8)),
    "file-shared": ((4, 0, 0, 4), (4, 0, ANY, ANY), (4, 0, ANY, 0), (4, 0, ANY, 0), (0, 0, 0, 4)),
    "fork": ((4, 4, 4, ANY), (4, 4, 4, 0), (4, 4, 4, 0), (4, 4, 4, 0), (4, 4, 4, 1), (4, 4, 4, 0), (0, 0, 0, 4)),
    "exec": ((4, 4, 4, ANY), (0, 0, 0, 4), (SOME, ANY, SOME, SOME)),
    "exit": ((SOME, ANY, SOME, ANY), (0, 0, 0, SOME)),
}
"""The counts that the inspector must show after each step: pages allocated, anonymous, mapped, and changed entries.

After execve another range is watched: the image of a program of the host.
"""
_WRITTEN_BACK = ("file-shared", 4)
"""The scenario and the step after which the real file must have changed."""

_CHECKOUT = Path(__file__).resolve().parent.parent
_SHM = Path("/dev/shm")


class Demo:
    """The whole demonstration, in one temporary directory."""

    def __init__(self, directory: Path, programs: ExitStack) -> None:
        """Keep all files in `directory`. `programs` ends the programs that still run at the end."""
        self._socket = directory / "kerneld" / "kerneld.sock"
        self._socket.parent.mkdir(mode=0o700)
        self._files = directory / "files"
        self._files.mkdir()
        path = os.pathsep.join(filter(None, [str(_CHECKOUT), os.environ.get("PYTHONPATH")]))
        self._environment = {
            **os.environ,
            "KERNELD_SOCKET": str(self._socket),
            "TMPDIR": str(self._files),
            "PYTHONPATH": path,
        }
        self._scene = Scene(self._environment, programs, self._check_step)

    def run(self) -> None:
        """Play the demonstration. Raises DemoError at the first check that fails."""
        say("kerneld, the kernel: it runs in a terminal of its own.")
        kerneld = self._start_kerneld()
        say("The target, in a second terminal: it changes its memory step by step, a step for each Enter.")
        self._scene.play(SCENARIOS)
        say("The target has ended, and its table is empty. Ctrl+C ends the inspector, which closes the table first.")
        self._scene.close_inspector()
        self._show_inside()
        say("Ctrl+C ends kerneld.")
        kerneld.interrupt()
        show("kerneld", kerneld.wait()[-1:])
        self._check_left_behind(kerneld.pid)
        say("The socket is gone, and nothing of kerneld's is left in /dev/shm. All that was shown has been checked.")

    def _start_kerneld(self) -> Program:
        kerneld = self._scene.start("kerneld", ["kerneld", "start"])
        lines = []
        while (line := kerneld.read_line()) is not None:
            lines.append(line)
            if self._socket.is_socket():
                show("kerneld", lines)
                return kerneld
        kerneld.wait()
        raise DemoError("kerneld has ended by itself")

    def _check_step(self, scenario: str, step: int, prints: Sequence[Print]) -> None:
        expected = EXPECTED[scenario]
        seen = (*prints[-1].counts, sum(each.changed for each in prints))
        if step <= len(expected):
            wanted = expected[step - 1]
            if not all(_is_as_wanted(want, have) for want, have in zip(wanted, seen, strict=True)):
                raise DemoError(f"step {step} of {scenario}: the table has {_words(seen)} and not {_words(wanted)}")
        if (scenario, step) == _WRITTEN_BACK:
            self._check_file()

    def _check_file(self) -> None:
        """Read the real file of the shared mapping, without kerneld. Raises DemoError if it has not changed."""
        paths = list(self._files.glob(f"*/{FILE_NAME}"))
        if not any(path.read_bytes().startswith(CHANGED.encode()) for path in paths):
            raise DemoError(f"msync has not changed the real file {FILE_NAME}")

    def _show_inside(self) -> None:
        """Show a C program whose memory is kerneld's, if one can be compiled and run here."""
        compiler = demo_inside.find_compiler()
        if compiler is None:
            say("There is no C compiler here. With one, kerneld exec runs unmodified programs inside.")
            return
        say("A C program, unmodified: kerneld exec runs it on the real processor, and kerneld has its memory.")
        path = demo_inside.compile_program(compiler, self._files)
        program = self._scene.start("C program", ["kerneld", "exec", "--", str(path)])
        line = program.read_line()
        reason = demo_inside.why_not(program, line)
        if reason:
            say(f"It cannot be run here. {reason}")
            return
        bounds = [hex(demo_inside.START), hex(demo_inside.START + demo_inside.PAGES * demo_inside.PAGE_BYTES)]
        words = [sys.executable, "-P", "-m", "inspector", str(program.pid), *bounds]
        show("inspector", ["$ " + shlex.join(words[3:])])
        inspector = self._scene.watch(words)
        for number, wanted in enumerate(demo_inside.EXPECTED):
            show("C program", [line] if line is not None else [])
            prints = inspector.next_prints(2)
            shown = pick_shown(prints) if number else inspector.first
            show("inspector", shown.lines)
            if prints[-1].counts != wanted:
                raise DemoError(f"line {number + 1} of the C program: {prints[-1].counts} and not {wanted}")
            program.press_enter()
            line = program.read_line()
        program.wait()
        self._scene.close_inspector()

    def _check_left_behind(self, pid: int) -> None:
        """Raise DemoError if kerneld, which was process `pid`, has left its socket, or something in /dev/shm."""
        if self._socket.exists():
            raise DemoError(f"kerneld has left its socket behind: {self._socket}")
        if left := _shm_names(pid):
            raise DemoError(f"left behind in {_SHM}: {', '.join(left)}")


@click.command("demo", cls=CommandLine, help=HELP)
def cli() -> None:
    if not are_colours_welcome():
        click.get_current_context().color = False
    with (
        ending_by_signals("demo"),
        private_directory("kerneld-demo-") as directory,
        ExitStack() as programs,
    ):
        Demo(Path(directory), programs).run()


def main() -> NoReturn:
    """Run the demonstration. The exit status is 0 when every check has passed, else 1."""
    run_program(cli)


def _is_as_wanted(want: int, have: int) -> bool:
    return want in (ANY, have) or (want == SOME and have > 0)


def _words(counts: Sequence[int]) -> str:
    names = ("allocated", "anonymous", "mapped", "changed")
    numbers = ("some" if count == SOME else str(count) for count in counts)
    return ", ".join(
        f"{number} {name}" for number, name, count in zip(numbers, names, counts, strict=True) if count != ANY
    )


def _shm_names(pid: int) -> list[str]:
    """Return the names of the segments of the kerneld with this number. Those of other programs do not count."""
    try:
        return sorted(name for name in os.listdir(_SHM) if name.startswith(f"kerneld-{pid}-"))
    except FileNotFoundError:
        return []


if __name__ == "__main__":
    main()
