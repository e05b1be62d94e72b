"""The process of one submission: it reads what to do from stdin, and writes the result to stdout, both as JSON.

`kerneld grade` starts it. It builds the walls, and its child behind them does the work: the first process of the pid
namespace, where there is one. Owns the order of the parts; a part that a limit ends decides its own rows.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NoReturn

from kerneld.commands.grade.cell import inspecting, isolation, judging, targeting
from kerneld.commands.grade.cell.build import Copied, CopyError, build, read_tree, write_tree
from kerneld.commands.grade.cell.files import Texts, judge_header, judge_texts, read_texts
from kerneld.commands.grade.cell.isolation import Walls
from kerneld.commands.grade.cell.launcher import Launcher, ProgramError
from kerneld.commands.grade.cell.machine import MachineError
from kerneld.commands.grade.cell.part5 import judge_part5
from kerneld.commands.grade.cell.room import Room, TooMuch
from kerneld.commands.grade.limits import Limits
from kerneld.commands.grade.model import Finding, failed, judged
from kerneld.commands.grade.rows import ROWS, Part
from shared.failure import Failure

_SHOWN = 6000
_ENDED = 4
"""The exit status of a cell that was ended."""


@dataclasses.dataclass(frozen=True, slots=True)
class Task:
    """What to do with one submission."""

    directory: str
    scratch: str
    """A directory for the room, where there is no wall around the files."""
    parts: tuple[str, ...]
    uid: int | None
    walls: Walls
    limits: Limits
    stub: str
    """Empty: no program can run inside here."""
    library: str
    header: str
    functions: tuple[str, ...]
    order: tuple[str, ...]
    why_no_order: str

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Task:
        """Return the task that `dataclasses.asdict` has made JSON of."""
        lists = {name: tuple(fields[name]) for name in ("parts", "functions", "order")}
        return cls(**{**fields, **lists, "walls": Walls(*fields["walls"]), "limits": Limits(**fields["limits"])})


def main() -> None:
    """Do the task of stdin. The exit status is 3 where a wall that was asked for cannot be built."""
    task = Task.from_json(json.load(sys.stdin))
    top = Path(task.directory)
    # All of it before the walls: behind them the submission and these files may be out of sight.
    try:
        tree: list[Copied] | str = read_tree(top / "user") if (top / "user").is_dir() else "there is no directory user"
    except (CopyError, OSError) as error:
        tree = str(error)
    tools = {Path(path).name: Path(path).read_bytes() for path in (task.stub, task.library) if path}
    texts = read_texts(top)
    isolation.die_with_parent()
    users = isolation.user_namespace()
    if isolation.unshare(task.walls) != task.walls:
        sys.exit(3)
    has_own_count = task.uid is not None or isolation.counts_apart(users)
    child = os.fork()
    if child:
        signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))
        # In a pid namespace all others have gone when this returns: zap_pid_ns_processes() waits for them.
        _pid, status = os.waitpid(child, 0)
        sys.exit(os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else _ENDED)
    isolation.die_with_parent()
    isolation.adopt_orphans()
    try:
        isolation.prepare_files(task.walls, isolation.python_directories())
    except isolation.WallError as error:
        print(error, file=sys.stderr)
        os._exit(3)
    started = time.monotonic()
    room = _make_room(task, has_own_count)
    signal.signal(signal.SIGTERM, lambda *_: _end(room))
    if task.walls.limit and not room.is_counted():
        print("Linux does not limit the processes of this user", file=sys.stderr)
        os._exit(3)
    work = Work(task, room, texts, tree, tools)
    findings = work.all()
    room.kill_all()
    json.dump(
        {
            "findings": [dataclasses.asdict(finding) for finding in findings],
            "seconds": time.monotonic() - started,
            "output": work.output,
        },
        sys.stdout,
    )
    sys.stdout.flush()
    os._exit(0)


def _end(room: Room) -> NoReturn:
    """The grader ends early: nothing of this submission stays."""
    room.kill_all()
    os._exit(_ENDED)


def _make_room(task: Task, has_own_count: bool) -> Room:
    directory = Path("/tmp/room") if task.walls.files else Path(task.scratch) / "room"
    directory.mkdir(mode=0o755, parents=True)
    directory.parent.chmod(0o755 if not task.walls.files else 0o1777)
    deadline = time.monotonic() + task.limits.all_seconds
    room = Room(directory, task.uid, task.walls, task.limits, deadline, has_own_count)
    (directory / "tmp").mkdir(mode=0o700)
    room.give(directory / "tmp")
    return room


class Work:
    """The parts of the work, in their order."""

    def __init__(self, task: Task, room: Room, texts: Texts, tree: list[Copied] | str, tools: dict[str, bytes]) -> None:
        self._task = task
        self._room = room
        self._texts = texts
        self._tree = tree
        self._tools = tools
        self._include = room.directory
        self.output = ""
        """What the programs printed."""

    def all(self) -> list[Finding]:
        """Do the parts that were asked for, and return their findings; every row of a part gets one."""
        steps: dict[Part, Callable[[], Iterator[Finding]]] = {
            Part.FILES: self._files, Part.PART5: self._part5, Part.BUILD: self._build,
            Part.INSPECTOR: self._inspector, Part.TARGET: self._target,
        }  # fmt: skip
        is_built = True
        findings: list[Finding] = []
        for part, step in steps.items():
            if part not in self._task.parts:
                continue
            if not is_built and part in (Part.INSPECTOR, Part.TARGET):
                findings += _all_failed(part, "the programs were not built")
                continue
            found = self._do(part, step)
            findings += found
            if part is Part.BUILD:
                is_built = found[0].outcome == "passed"
        return findings

    def _do(self, part: Part, step: Callable[[], Iterator[Finding]]) -> list[Finding]:
        findings: list[Finding] = []
        try:
            for finding in step():
                findings.append(finding)
        except (TooMuch, MachineError, ProgramError, Failure, OSError) as error:
            why = error.message if isinstance(error, Failure) else str(error)
            findings += _all_failed(part, why, {finding.row for finding in findings})
        self._room.kill_all()
        return findings

    def _files(self) -> Iterator[Finding]:
        yield from judge_texts(self._texts)
        finding, _include = judge_header(self._room, self._texts.user_header, self._task.header)
        yield finding

    def _part5(self) -> Iterator[Finding]:
        task = self._task
        yield from judge_part5(self._texts.part5, task.functions, task.order, task.why_no_order)

    def _build(self) -> Iterator[Finding]:
        if isinstance(self._tree, str):
            yield failed("build", self._tree)
            return
        _finding, include = judge_header(self._room, self._texts.user_header, self._task.header)
        write_tree(self._room, self._room.directory / "user", self._tree)
        built = build(self._room, self._part4, include)
        self._note("make", built.output)
        yield judged("build", built.why_not, "inspector and target")

    @property
    def _part4(self) -> Path:
        return self._room.directory / "user" / "part4"

    def _launcher(self) -> Launcher:
        tools = {name: self._room.directory / name for name in self._tools}
        for name, path in tools.items():
            if not path.exists():
                path.write_bytes(self._tools[name])
                path.chmod(0o755)
        stub, library = Path(self._task.stub).name, Path(self._task.library).name
        return Launcher(
            self._room, self._part4, str(tools[stub]) if stub else "", str(tools[library]) if library else ""
        )

    def _inspector(self) -> Iterator[Finding]:
        seen, large, shorts = inspecting.inspect(self._launcher())
        self._note("./inspector", seen.text)
        yield from judging.judge(seen, large, shorts)

    def _target(self) -> Iterator[Finding]:
        findings, text = targeting.watch(self._launcher())
        self._note("./target", text)
        yield from findings

    def _note(self, name: str, text: str) -> None:
        shown = text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]}\n…\n{text[-_SHOWN // 2 :]}"
        self.output += f"$ {name}\n{shown}\n"


def _all_failed(part: Part, why: str, but: Collection[str] = ()) -> list[Finding]:
    return [failed(row.name, why) for row in ROWS if row.part is part and row.name not in but]


if __name__ == "__main__":
    main()
