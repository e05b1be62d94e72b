"""Two processes side by side, as lines."""

from __future__ import annotations

from datetime import UTC, datetime

import click
import pytest

from inspector.pair_view import TWO_COLUMNS, Both, Side, both_lines, fold_rows, relation_of
from inspector.table import Entry, diff
from shared.uapi.page import PAGE_SIZE

BASE = 0x10_0000_0000


def entries(*cells: tuple[int, int]) -> list[Entry]:
    return [Entry(BASE + at * PAGE_SIZE, pfn, flags) for at, (pfn, flags) in enumerate(cells)]


def both(left: list[Entry], right: list[Entry], before: list[Entry] | None = None) -> Both:
    sides = Side(42, left, diff(before, left), False), Side(43, right, diff(before, right), True)
    return Both(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), BASE, BASE + len(left) * PAGE_SIZE, sides, before is None)


@pytest.mark.parametrize(
    ("left", "right", "relation"),
    [
        ((9, 7), (9, 7), "="),
        ((9, 7), (8, 7), "/"),
        ((9, 7), (0, 3), " "),
        ((0, 3), (0, 3), " "),
        # Frames that may not be seen cannot be compared.
        ((0, 7), (0, 7), " "),
    ],
)
def test_frames_are_compared(left: tuple[int, int], right: tuple[int, int], relation: str) -> None:
    assert relation_of(*entries(left), *entries(right)) == relation


def test_pages_that_are_alike_on_both_sides_are_one_row() -> None:
    left = entries((5, 7), (6, 7), (7, 7), (0, 3), (0, 0))
    right = entries((5, 7), (6, 7), (9, 7), (0, 3), (0, 0))
    rows = list(fold_rows(both(left, right), every_page=False))
    assert [(row.runs[0].pages, row.relation) for row in rows] == [(2, "="), (1, "/"), (1, " "), (1, " ")]
    assert len(list(fold_rows(both(left, right), every_page=True))) == 5


def test_lines_fit_into_their_terminal() -> None:
    before = entries((5, 7), (6, 7))
    shown = both(before, entries((5, 7), (0x123, 7)), before)
    wide = [click.unstyle(line) for line in both_lines(shown, False, None)]
    assert all(len(line) <= TWO_COLUMNS for line in wide)
    assert wide[0] == "03:04:05.000  pids 42 and 43 (exited)  0x1000000000-0x1000002000  2 pages"
    assert wide[1].split("    ")[-1].strip() == "43: 2 allocated, 2 mapped, 1 changed"
    words = "0x001000001000 1 page 0x6 allocated anonymous mapped / * 0x123 allocated anonymous mapped"
    assert " ".join(wide[3].split()) == words
    narrow = [click.unstyle(line) for line in both_lines(shown, False, 80)]
    assert all(len(line) <= 80 for line in narrow)
    assert " ".join(narrow[-2].split()) == "0x001000001000 1 page 42 0x6 allocated anonymous mapped"
    assert " ".join(narrow[-1].split()) == "/ 43 * 0x123 allocated anonymous mapped"
