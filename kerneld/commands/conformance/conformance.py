"""`kerneld conformance`: the checks of the assignment, for kerneld and for real kernels. Owns the options and words."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click

from kerneld.commands.compiled import BuildError
from kerneld.commands.conformance.kit import PROGRAM, Check, kit_files, read_checks
from kerneld.commands.failure import KerneldStatus
from shared.failure import Failure, Status

HELP = """Write the kit of checks of the assignment, shadowpt-check, or print its table of checks.

The kit is C without dependencies. It runs on a kernel that has the calls of the shadow page table: a student's kernel,
or kerneld. It prints TAP, as kselftest does. Each failed check has three lines: what the check did, what it expected
and saw, and the usual mistake. A check that hangs is ended. After a crash of the kernel, the log tells which check was
running.

\b
Examples:
  kerneld conformance --export kit          write the C files and the Makefile into the directory kit
  make -C kit && sudo kit/shadowpt-check    in the virtual machine, on the kernel that is tested
  sudo kit/shadowpt-check --only pte_cow    one check
  kerneld exec -- kit/shadowpt-check        the same checks on kerneld
  kerneld conformance --list                the table of checks
  kerneld conformance --list --json         the table for programs

\b
Exit status:
  0  done        1  the directory cannot be written        8  the kit cannot be compiled here
"""


@click.command(name="conformance", short_help="Write the checks of the assignment, for real kernels too.", help=HELP)
@click.option("--export", "directory", metavar="DIR", help="Write the kit into this directory.")
@click.option("--list", "is_list", is_flag=True, help="Print the checks: name, points and rule.")
@click.option("--json", "is_json", is_flag=True, help="With --list: every field of each check, as JSON.")
def conformance(directory: str | None, is_list: bool, is_json: bool) -> None:
    """Export, list, or both."""
    if directory is None and not is_list:
        raise click.UsageError("Missing option '--export' or '--list'.")
    if is_json and not is_list:
        raise click.UsageError("'--json' needs '--list'.")
    if directory is not None:
        export(Path(directory))
    if is_list:
        try:
            checks = read_checks()
        except BuildError as error:
            raise Failure(KerneldStatus.CANNOT_RUN, str(error)) from None
        print_checks(checks, is_json=is_json)


def export(directory: Path) -> None:
    """Copy the kit into a directory, which is made if it does not exist. Raises Failure."""
    for source in kit_files():
        target = directory / source.name
        try:
            directory.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
        except OSError as error:
            raise Failure(Status.FAILED, f"cannot write {target}: {error.strerror}") from None
    click.echo(f"{directory}: the kit; make -C {directory} && sudo {directory / PROGRAM}", err=True)


def print_checks(checks: list[Check], *, is_json: bool) -> None:
    """Print the table for people, or all of it as JSON."""
    if is_json:
        click.echo(json.dumps([dataclasses.asdict(check) for check in checks], indent=2))
        return
    for check in checks:
        points = "extra" if check.is_extra else f"{check.points:5}"
        click.echo(f"{points}  {check.name:<26}  {check.rule}")
    click.echo(f"{sum(check.points for check in checks):5}  points of {len(checks)} checks")
