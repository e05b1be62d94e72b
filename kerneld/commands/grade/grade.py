"""`kerneld grade`: the user programs of the assignment, by submissions. Owns the options and the words."""

from __future__ import annotations

import os
from pathlib import Path

import click

from kerneld.commands.compiled import BuildError
from kerneld.commands.failure import KerneldStatus
from kerneld.commands.grade.bundle import write_bundle
from kerneld.commands.grade.checklist import NAME, Checklist, ChecklistError, checklist_text, read_checklist
from kerneld.commands.grade.grading import Means, find_tools, find_walls, grade_all
from kerneld.commands.grade.report import gradescope, junit, page, table
from kerneld.commands.grade.rows import BY_NAME, Part
from kerneld.commands.grade.traced_order import Order, trace_order
from shared.failure import Failure, Status
from shared.interrupts import ending_by_signals
from shared.option_types import Whole

HELP = """Grade the user programs of submissions: user/part4, user/part5.txt, and the files beside them.

Each DIR is the top directory of one submission, with user/ and linux/ in it. user/part4 is copied and built by its own
Makefile, and its programs run in a private kernel: its inspector against our target, its target against our inspector.
Nothing of a submission runs outside its own walls: limits of time, memory, processes and output; as root another user;
its own processes, files and network, where the host allows it. What the inspector prints may have any format.

\b
Examples:
  kerneld grade team7                          a table: each row, what was expected, what was seen
  kerneld grade --html pages teams/*           and a page for each team
  kerneld grade --only inspector_pfns team7    one row again, with what the programs printed
  kerneld grade --init course                  write course/checklist.toml: edit the points
  kerneld grade --checklist course teams/*     grade with these points
  kerneld grade --checklist course --gradescope autograder.zip
                                               a bundle to upload to Gradescope

\b
Exit status:
  0  done, whatever the points are        1  a file cannot be read or written
  2  wrong usage                          8  no program can be built or run here
"""
_JOBS_EACH = 4
"""Submissions at once for each processor: they wait most of the time."""


@click.command(name="grade", short_help="Grade the user programs of submissions.", help=HELP)
@click.argument(
    "directories", nargs=-1, metavar="DIR...", type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@click.option("--jobs", type=Whole(1, 256), help="Submissions at once. [4 for each processor]")
@click.option("--only", multiple=True, metavar="ROW", help="Only this row. May be given again.")
@click.option("--checklist", "checklist_path", metavar="FILE", type=click.Path(exists=True, path_type=Path),
              help="The points, limits and functions of a course: a file, or the directory of --init.")  # fmt: skip
@click.option("--json", "json_path", metavar="FILE", type=click.Path(path_type=Path),
              help="Write results in the form of Gradescope's results.json.")  # fmt: skip
@click.option("--junit", "junit_path", metavar="FILE", type=click.Path(path_type=Path), help="Write JUnit's XML.")
@click.option("--html", "html_path", metavar="DIR", type=click.Path(path_type=Path),
              help="Write a page for each team, and an index.")  # fmt: skip
@click.option("--init", "init_path", metavar="DIR", type=click.Path(path_type=Path),
              help="Write a checklist with points to edit, and end.")  # fmt: skip
@click.option("--gradescope", "bundle_path", metavar="OUT.zip", type=click.Path(path_type=Path),
              help="Write an autograder bundle, and end.")  # fmt: skip
@click.option("--answers", is_flag=True, help="Print the traced order of the last question, and end.")
def grade(
    directories: tuple[Path, ...], jobs: int | None, only: tuple[str, ...], checklist_path: Path | None,
    json_path: Path | None, junit_path: Path | None, html_path: Path | None, init_path: Path | None,
    bundle_path: Path | None, answers: bool,
) -> None:  # fmt: skip
    """Write what was asked for, or grade."""
    checklist = _read_checklist(checklist_path)
    if init_path is not None:
        _write(init_path / NAME, checklist_text(checklist))
    if bundle_path is not None:
        _write_bundle(bundle_path, checklist)
    if answers:
        _print_answers(checklist)
    if not directories:
        if init_path is None and bundle_path is None and not answers:
            raise click.UsageError("Missing argument 'DIR...'.")
        return
    chosen = _choose(checklist, only)
    many = jobs or _JOBS_EACH * (os.cpu_count() or 1)
    show = table.Shower(chosen, is_detailed=bool(only) or len(directories) == 1)
    # Ctrl+C: the programs that run are ended, and the directories of this run are removed.
    with ending_by_signals("kerneld"):
        means = _find_means(chosen)
        click.echo(table.walls_line(means.walls), err=True)
        results = grade_all(directories, means, min(many, len(directories)), show.add)
    click.echo(table.totals(results, chosen))
    if json_path is not None:
        _write(json_path, gradescope.results_text(results, chosen))
    if junit_path is not None:
        _write(junit_path, junit.junit_text(results, chosen))
    if html_path is not None:
        for name, text in page.pages(results, chosen).items():
            _write(html_path / name, text)


def _read_checklist(path: Path | None) -> Checklist:
    if path is None:
        return Checklist.default()
    try:
        return read_checklist(path)
    except ChecklistError as error:
        raise Failure(Status.FAILED, str(error)) from None


def _choose(checklist: Checklist, only: tuple[str, ...]) -> Checklist:
    """Return a checklist with the chosen rows alone. Raises a usage error for a row that does not exist."""
    if not only:
        return checklist
    for name in only:
        if name not in BY_NAME:
            raise click.BadParameter(f"there is no row '{name}' ({', '.join(BY_NAME)})", param_hint="--only")
    points = {name: checklist.points.get(name, BY_NAME[name].points) for name in BY_NAME if name in only}
    return Checklist(checklist.course, points, checklist.limits, checklist.functions)


def _find_means(checklist: Checklist) -> Means:
    parts = {BY_NAME[name].part for name in checklist.points}
    if parts & {Part.INSPECTOR, Part.TARGET}:
        parts.add(Part.BUILD)
    try:
        stub, library, why_not_inside = find_tools()
    except BuildError as error:
        raise Failure(KerneldStatus.CANNOT_RUN, str(error)) from None
    order = trace_order(checklist.functions) if Part.PART5 in parts else Order((), "not asked for")
    ordered = tuple(part for part in Part if part in parts)
    return Means(checklist, ordered, find_walls(), stub, library, order, why_not_inside)


def _print_answers(checklist: Checklist) -> None:
    with ending_by_signals("kerneld"):
        order = trace_order(checklist.functions)
    if not order.functions:
        raise Failure(Status.FAILED, order.why_not)
    click.echo("\n".join(order.functions))


def _write_bundle(path: Path, checklist: Checklist) -> None:
    try:
        write_bundle(path, checklist)
    except OSError as error:
        raise Failure(Status.FAILED, f"cannot write {path}: {error.strerror}") from None
    click.echo(f"{path}: the autograder, to upload to Gradescope", err=True)


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    except OSError as error:
        raise Failure(Status.FAILED, f"cannot write {path}: {error.strerror}") from None
    click.echo(f"{path} is written", err=True)
