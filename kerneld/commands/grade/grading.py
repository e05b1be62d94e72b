"""Grades submissions side by side: a process for each (`kerneld.commands.grade.cell`). Owns these processes.

What all submissions need is made once: the walls that the host allows, the tools, the traced order of part 5.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kerneld.commands.compiled import BuildError
from kerneld.commands.exec.build_stub import ensure_stub
from kerneld.commands.grade.cell.isolation import Walls
from kerneld.commands.grade.checklist import Checklist
from kerneld.commands.grade.model import Finding, Result, failed
from kerneld.commands.grade.rows import ROWS, Part
from kerneld.commands.grade.traced_order import Order
from kerneld.commands.run.preload import ensure_library, header_path

_CELL = (sys.executable, "-P", "-m", "kerneld.commands.grade.cell")
_NO_WALLS = 3
USERS = range(59_000, 60_000)
"""No users of a usual system: Debian's and systemd's ranges end below or begin above (systemd.io/UIDS-GIDS)."""
_SLACK_SECONDS = 30
_END_SECONDS = 10.0
_KEPT = 2000


@dataclasses.dataclass(frozen=True, slots=True)
class Means:
    """What all submissions are graded with."""

    checklist: Checklist
    parts: tuple[Part, ...]
    walls: Walls
    stub: str
    library: str
    order: Order
    why_not_inside: str = ""


def team_names(directories: Sequence[Path]) -> list[str]:
    """Return a name for each submission: that of its directory, with a number where several have the same."""
    names: list[str] = []
    for directory in directories:
        name = directory.resolve().name or "submission"
        same = sum(1 for one in names if one == name or one.startswith(f"{name}-"))
        names.append(f"{name}-{same + 1}" if name in names else name)
    return names


def find_walls() -> Walls:
    """Return the walls that this host allows. They are built once, to see."""
    user = os.geteuid() == 0 and can_build(Walls(user=True))
    for has_files, network, limit in itertools.product((True, False), repeat=3):
        walls = Walls(user, has_files, has_files, network, limit)
        if can_build(walls):
            return walls
    return Walls()


def can_build(walls: Walls) -> bool:
    """Build these walls around nothing, and return whether they stand."""
    with tempfile.TemporaryDirectory(prefix="kerneld-grade-") as scratch, _own_user(walls) as uid:
        return _cells.run(_task(Path("/"), scratch, (), uid, walls, None), 60).returncode == 0


def find_tools() -> tuple[str, str, str]:
    """Return the stub of `kerneld exec`, the library of `kerneld run`, and why no program can run inside.

    Raises BuildError when there is neither.
    """
    library = str(ensure_library("f24"))
    try:
        return str(ensure_stub()), library, ""
    except BuildError as error:
        return "", library, str(error)


def grade_all(
    directories: Sequence[Path], means: Means, jobs: int, on_result: Callable[[Result], None]
) -> list[Result]:
    """Grade all submissions, `jobs` at once, and return their results in the order of the directories.

    `on_result` gets each result when it is there.
    """
    names = team_names(directories)
    results: dict[int, Result] = {}
    with ThreadPoolExecutor(jobs) as pool:
        futures = {
            pool.submit(grade, directory, name, means): at
            for at, (directory, name) in enumerate(zip(directories, names, strict=True))
        }
        try:
            for future in as_completed(futures):
                results[futures[future]] = future.result()
                on_result(future.result())
        except BaseException:
            # The pool waits for its threads, and each of them for its cell.
            pool.shutdown(wait=False, cancel_futures=True)
            _cells.end_all()
            raise
    return [results[at] for at in range(len(directories))]


def grade(directory: Path, name: str, means: Means) -> Result:
    """Grade one submission. Raises RuntimeError when all users for submissions are in use."""
    scratch = tempfile.mkdtemp(prefix="kerneld-grade-")
    try:
        with _own_user(means.walls) as uid:
            task = _task(directory.resolve(), scratch, means.parts, uid, means.walls, means)
            done = _cells.run(task, means.checklist.limits.all_seconds + _SLACK_SECONDS)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    try:
        fields = json.loads(done.stdout)
    except ValueError:
        return _without_answer(directory, name, means, done)
    result = Result.from_json({"team": name, "directory": str(directory), "walls": means.walls.words(), **fields})
    findings = [_with_command(finding, directory) for finding in result.findings]
    return dataclasses.replace(result, findings=_chosen(findings, means))


@contextmanager
def _own_user(walls: Walls) -> Iterator[int | None]:
    """Yield a user that nobody else has now, on the whole host, or None; kill what it has left running.

    A user is taken by an abstract socket (unix(7)): Linux frees its name when this process ends, however it ends.
    """
    if not walls.user:
        yield None
        return
    for uid in USERS:
        with socket.socket(socket.AF_UNIX) as claim:
            try:
                claim.bind(f"\0kerneld-grade-{uid}")
            except OSError:
                continue
            try:
                yield uid
            finally:
                _sweep(uid)
            return
    raise RuntimeError("all users for submissions are in use")


def _chosen(findings: Sequence[Finding], means: Means) -> tuple[Finding, ...]:
    """Return the findings of the rows that the checklist has, in its order."""
    by_row = {finding.row: finding for finding in findings}
    return tuple(by_row[row] for row in means.checklist.points if row in by_row)


def _with_command(finding: Finding, directory: Path) -> Finding:
    return dataclasses.replace(finding, again=f"kerneld grade --only {finding.row} {directory}")


def _without_answer(directory: Path, name: str, means: Means, done: subprocess.CompletedProcess[str]) -> Result:
    """Return the result of a submission whose process gave none: everything failed, and the reason is shown."""
    why = "its time was over" if done.returncode < 0 else f"status {done.returncode}: {done.stderr.strip()[-300:]}"
    findings = [
        _with_command(failed(row.name, f"the process that grades this submission was ended ({why})"), directory)
        for row in ROWS
        if row.part in means.parts
    ]
    return Result(name, str(directory), _chosen(findings, means), means.walls.words(), output=done.stderr[-_KEPT:])


def _task(
    directory: Path, scratch: str, parts: Sequence[Part], uid: int | None, walls: Walls, means: Means | None
) -> dict[str, Any]:
    """Return the task of a cell: the fields of `kerneld.commands.grade.cell.__main__.Task`."""
    checklist = means.checklist if means else Checklist.default()
    order = means.order if means else Order((), "")
    return {
        "directory": str(directory), "scratch": scratch, "parts": list(parts), "uid": uid, "walls": list(walls),
        "limits": dataclasses.asdict(checklist.limits), "stub": means.stub if means else "",
        "library": means.library if means else "", "header": header_path("f24").read_text(),
        "functions": list(checklist.functions), "order": list(order.functions), "why_no_order": order.why_not,
    }  # fmt: skip


class _Cells:
    """The cells that run now, so that all can be ended: by a thread's timeout, or from outside when people stop."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._is_over = False

    def run(self, task: dict[str, Any], seconds: float) -> subprocess.CompletedProcess[str]:
        """Run a cell to its end; after the time, or after an exception here, it is ended, and everything in it."""
        cell = self._start()
        try:
            out, err = cell.communicate(json.dumps(task), timeout=seconds)
        except subprocess.TimeoutExpired:
            out, err = _end(cell)
        except BaseException:
            _end(cell)
            raise
        finally:
            with self._lock:
                self._running.discard(cell)
        return subprocess.CompletedProcess(_CELL, cell.returncode, out, err)

    def end_all(self) -> None:
        """Ask all cells to end. Each is waited for where it runs. A cell that begins later ends at once."""
        with self._lock:
            self._is_over = True
            for cell in self._running:
                cell.terminate()

    def _start(self) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        with self._lock:
            cell = subprocess.Popen(_CELL, stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
            self._running.add(cell)
            if self._is_over:
                cell.terminate()
        return cell


def _end(cell: subprocess.Popen[str]) -> tuple[str, str]:
    """End a cell, and wait until all that was in it has gone. Return what it has written."""
    cell.terminate()
    try:
        return cell.communicate(timeout=_END_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(cell.pid, signal.SIGKILL)
        return cell.communicate()


_cells = _Cells()


def _sweep(uid: int) -> None:
    """Kill all processes of a user. Source: kill(2), of the pid -1."""
    child = os.fork()
    if child == 0:
        try:
            os.setresuid(uid, uid, uid)
            os.kill(-1, signal.SIGKILL)
        finally:
            os._exit(0)
    os.waitpid(child, 0)


__all__ = ["Means", "find_tools", "find_walls", "grade", "grade_all", "team_names"]
