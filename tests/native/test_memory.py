"""Memory of every kind that a program inside can ask for: the same as outside."""

from __future__ import annotations

from pathlib import Path

from tests.native.inside import Inside


def test_dev_zero_is_memory(inside: Inside, programs: dict[str, Path]) -> None:
    assert "after the child: 1 2, status 0" in inside.agrees([str(programs["zero"])]).output
