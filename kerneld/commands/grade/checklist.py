"""A course's checklist: the points of each row, the limits, the functions of the last question. TOML, to be edited.

Owns the file's form. A row that is missing, or has no points, is not graded.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from kerneld.commands.grade.limits import Limits
from kerneld.commands.grade.rows import BY_NAME, ROWS
from kerneld.commands.grade.traced_order import FUNCTIONS

NAME = "checklist.toml"


class ChecklistError(Exception):
    """The checklist cannot be read: one line for people."""


@dataclasses.dataclass(frozen=True, slots=True)
class Checklist:
    """What a course grades."""

    course: str
    points: Mapping[str, float]
    """By the name of a row, in the order in which they are shown."""
    limits: Limits
    functions: tuple[str, ...]
    """The functions that the last question lists, in any order."""

    @classmethod
    def default(cls) -> Checklist:
        """Return the checklist that kerneld proposes."""
        return cls("", {row.name: row.points for row in ROWS}, Limits(), FUNCTIONS)


def read_checklist(path: Path) -> Checklist:
    """Read a checklist: a file, or a directory with `checklist.toml`. Raises ChecklistError."""
    file = path / NAME if path.is_dir() else path
    try:
        fields = tomllib.loads(file.read_text())
    except OSError as error:
        raise ChecklistError(f"cannot read {file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ChecklistError(f"{file}: {error}") from None
    try:
        return _from_fields(fields)
    except ValueError as error:
        raise ChecklistError(f"{file}: {error}") from None


def _from_fields(fields: dict[str, Any]) -> Checklist:
    _check_names("", fields, {"course", "points", "limits", "part5"})
    points = fields.get("points", {})
    _check_names("points", points, BY_NAME)
    _check_numbers("points", points, (int, float))
    limits = fields.get("limits", {})
    _check_names("limits", limits, {field.name for field in dataclasses.fields(Limits)})
    _check_numbers("limits", limits, (int,))
    if not all(limits.values()):
        raise ValueError("a limit is above 0")
    part5 = fields.get("part5", {})
    _check_names("part5", part5, {"functions"})
    functions = part5.get("functions", list(FUNCTIONS))
    if not isinstance(functions, list) or not all(isinstance(name, str) and name.isidentifier() for name in functions):
        raise ValueError("part5.functions is a list of names of functions")
    return Checklist(
        str(fields.get("course", "")), {name: value for name, value in points.items() if value}, Limits(**limits),
        tuple(functions),
    )  # fmt: skip


def _check_names(where: str, fields: Any, known: Container[str]) -> None:
    if not isinstance(fields, dict):
        raise ValueError(f"[{where}] is a table")
    for name in fields:
        if name not in known:
            raise ValueError(f"there is no '{f'{where}.' if where else ''}{name}'")


def _check_numbers(where: str, fields: dict[str, Any], kinds: tuple[type[int | float], ...]) -> None:
    for name, value in fields.items():
        if isinstance(value, bool) or not isinstance(value, kinds) or not 0 <= value < 1e6:
            raise ValueError(f"{where}.{name} is a number of 0 or more")


def checklist_text(checklist: Checklist) -> str:
    """Return a checklist as TOML, with a comment for each row."""
    lines = [
        "# What kerneld grade looks at, and the points of each row. Edit the points; a row with 0 is not graded.",
        "#     kerneld grade --checklist THIS_FILE teams/*",
        "",
        f"course = {_quoted(checklist.course or 'W4118')}",
        "",
        "[points]",
    ]
    for name, points in checklist.points.items():
        row = BY_NAME[name]
        lines += [f"# {row.title}: {row.expected}.", f"{name} = {points:g}"]
    lines += ["", "# What one submission may use. Times are in seconds on the clock, sizes in MiB.", "[limits]"]
    lines += [f"{field.name} = {getattr(checklist.limits, field.name)}" for field in dataclasses.fields(Limits)]
    lines += [
        "",
        "# The functions that the last question lists, in any order. The right order is traced, and not in this file.",
        "[part5]",
        "functions = [",
        *(f"    {_quoted(name)}," for name in sorted(checklist.functions)),
        "]",
        "",
    ]
    return "\n".join(lines)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
