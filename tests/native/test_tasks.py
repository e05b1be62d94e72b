"""New tasks of every kind, and programs that change their user: the same inside and outside."""

from __future__ import annotations

from pathlib import Path

from tests.native.inside import Inside
from tests.support.rights import needs_the_hosts_rights


def test_tasks_are_made_and_refused_as_outside(inside: Inside, programs: dict[str, Path]) -> None:
    output = inside.agrees([str(programs["clones"])]).output
    assert "a child and its brother: 11, then no more: 1" in output
    assert "children of parents that had ended: 30" in output
    assert "80 refused, one made: 100" in output


def test_a_child_is_there_at_once_after_the_fork(inside: Inside, programs: dict[str, Path]) -> None:
    output = inside.agrees([str(programs["newborn"])]).output
    assert output == "seen 12, written 12, mapped 12, limits 12, ended 12\n"


@needs_the_hosts_rights
def test_a_program_that_changes_its_user(inside: Inside, programs: dict[str, Path]) -> None:
    end = inside.agrees([str(programs["users"])])
    assert end.output.endswith("another program\n")
    assert end.status == 0


def test_a_program_that_has_all_the_files_it_may_have(inside: Inside, programs: dict[str, Path]) -> None:
    output = inside.agrees([str(programs["many_files"])]).output
    assert "the last descriptor: 63" in output
    assert "a thread: 1, a child of a child: 300" in output
