"""A program inside opens the table of another inside."""

from __future__ import annotations

from pathlib import Path

from tests.native.inside import Inside

EXPECTED = """\
open 0
again -1
start 0
before 3 3 3
after 3 7 0
contents 0: t
no frame -1
gone 0
stop 0
close 0
empty 0
closed -1
"""


def test_the_assignments_calls_work_inside(inside: Inside, programs: dict[str, Path]) -> None:
    assert inside.run([str(programs["table"])]).output == EXPECTED
