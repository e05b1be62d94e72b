"""The marks of a record: moments that a person has named. They are in the head of the record, as `marks`.

A moment is the number of the event that comes next. A head may come from anybody: what is no mark in it is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

MOST_MARKS = 1000
_NAME = "[A-Za-z0-9]{1,8}"
_WORD = re.compile(f"([0-9]{{1,15}}):({_NAME})")


class Mark(NamedTuple):
    """A moment, and its name: up to eight letters and digits."""

    at: int
    name: str


def parse_marks(text: str) -> list[Mark]:
    """Return the marks of `120:A,300:B`, in the order of their moments. Raises ValueError."""
    words = text.split(",") if text else []
    found = [_WORD.fullmatch(word) for word in words]
    if len(words) > MOST_MARKS or None in found:
        raise ValueError(f"marks are up to {MOST_MARKS} of NUMBER:NAME, with commas between them")
    return sorted(Mark(int(match[1]), match[2]) for match in found if match)


def with_marks(head: Mapping[str, Any], marks: Iterable[Mark]) -> dict[str, Any]:
    """Return a head with these marks, and no others."""
    return {**head, "marks": [mark._asdict() for mark in marks]}


def marks_of(head: Mapping[str, Any]) -> list[Mark]:
    """Return the marks of a head, in the order of their moments."""
    marks = head.get("marks")
    found = []
    for one in marks[:MOST_MARKS] if isinstance(marks, list) else ():
        at, name = (one.get("at"), one.get("name")) if isinstance(one, dict) else (None, None)
        if type(at) is int and at >= 0 and isinstance(name, str) and re.fullmatch(_NAME, name):
            found.append(Mark(at, name))
    return sorted(found)
