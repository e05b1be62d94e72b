"""The heat map of a mapping, by letters and by half blocks."""

from __future__ import annotations

import pytest
from rich.style import Style

from inspector.tui.drawing import Kind, Line, half_block_map, heat_map
from inspector.tui.screens import style_of

A, C, N = Kind.ANON, Kind.COW, Kind.ALLOCATED
BLUE, PINK = Style.parse("#34b4ef").color, Style.parse("#d88ebc").color


def read_letters(lines: list[Line]) -> list[str]:
    return ["".join(piece for piece, _look in line).strip() for line in lines]


def read_halves(lines: list[Line]) -> list[str]:
    """Return the rows of names that the half blocks show, as the letters of their kinds."""
    rows: list[str] = []
    for line in lines:
        upper = lower = ""
        for piece, look in line[1:]:
            names = look.split("-")[1:]
            upper += "".join(Kind[names[0].upper()].value for _ in piece)
            lower += "".join(Kind[names[1].upper()].value for _ in piece if names[1] != "none")
        rows += [upper, lower] if lower else [upper]
    return rows


@pytest.mark.parametrize("count", [1, 7, 8, 9, 15, 16, 17, 40])
def test_half_blocks_show_what_letters_show(count: int) -> None:
    cells = [(A, C, N)[at * at % 3] for at in range(count)]
    assert read_halves(list(half_block_map(cells, 8))) == read_letters(list(heat_map(cells, 8)))


def test_equal_neighbours_are_one_piece() -> None:
    (line,) = half_block_map([A] * 4 + [C] * 4, 4)
    assert line == [("  ", ""), ("\u2580" * 4, "half-anon-cow")]


def test_a_half_block_has_the_colours_of_both() -> None:
    style = Style.parse(style_of("half-anon-cow"))
    assert (style.color, style.bgcolor) == (BLUE, PINK)


def test_below_the_last_row_there_is_no_colour() -> None:
    style = Style.parse(style_of("half-cow-none"))
    assert (style.color, style.bgcolor) == (PINK, None)


def test_every_kind_has_a_colour_of_its_own() -> None:
    colours = {Style.parse(style_of(f"half-{kind.name.lower()}-none")).color for kind in Kind}
    assert len(colours) == len(Kind)
