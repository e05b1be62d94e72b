"""How a program of a submission is started so that the private kernel answers its calls.

Inside the machine (`kerneld exec`), where the host allows it: there every program works, static ones and ones with
their own syscall instruction too. Else with the preloaded library (`kerneld run`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kerneld.commands.exec.launch import stub_words
from kerneld.commands.grade.cell.machine import Machine
from kerneld.commands.grade.cell.program import Program
from kerneld.commands.grade.cell.room import Room, open_files
from kerneld.commands.program import ProgramError
from kerneld.commands.run.program import check_program
from kerneld.commands.run.run import preload_environment
from kerneld.commands.semesters import SEMESTERS

ABI = "f24"


@dataclass(frozen=True, slots=True)
class Launcher:
    """The means to start programs."""

    room: Room
    directory: Path
    """The working directory of the programs: user/part4 of the copy."""
    stub: str
    """The path of the stub of `kerneld exec`; empty where no program can run inside."""
    library: str
    """The path of the library of `kerneld run`."""

    @property
    def runs_inside(self) -> bool:
        """Whether programs run inside the machine."""
        return bool(self.stub)

    def environment(self) -> dict[str, str]:
        """Return the environment of a program of the submission."""
        return plain_environment(self.room)

    def start(self, machine: Machine, name: str, arguments: Sequence[str] = ()) -> Program:
        """Start a program of the submission. Raises ProgramError where it cannot run here."""
        path = self.directory / name
        words = [f"./{name}", *arguments]
        environment = {**self.environment(), "KERNELD_SOCKET": machine.socket}
        if self.stub:
            stub = stub_words(machine.socket, SEMESTERS[ABI].define, [str(path), *words], open_files())
            return Program(self.room, stub, environment, self.directory, self.stub, name)
        check_program(str(path))
        preloaded = preload_environment(environment, Path(self.library), machine.socket)
        return Program(self.room, words, preloaded, self.directory, str(path), name)


def plain_environment(room: Room) -> dict[str, str]:
    """Return what every program of the submission and every tool of its build gets: nothing of the grader's own."""
    scratch = str(room.directory / "tmp")
    return {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": scratch, "TMPDIR": scratch, "LANG": "C.UTF-8", "TERM": "xterm",
    }  # fmt: skip


__all__ = ["ABI", "Launcher", "ProgramError", "plain_environment"]
