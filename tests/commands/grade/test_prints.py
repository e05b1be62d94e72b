"""Which text is the last print of an inspector, by the times at which its pieces came."""

from __future__ import annotations

from kerneld.commands.grade.cell.inspecting import WINDOW, _last_print
from kerneld.commands.grade.cell.program import Chunk
from kerneld.commands.grade.cell.puppet import PAGES, STEADY

SECOND = 10**9


def lines(word: str, pages: range = range(PAGES)) -> str:
    """The lines of these pages."""
    return "".join(f"{WINDOW.address(page):#x} {word}\n" for page in pages)


def at(*pieces: tuple[float, str]) -> list[Chunk]:
    """Pieces of text, each with the second in which it came."""
    return [Chunk(int(seconds * SECOND), text) for seconds, text in pieces]


def test_the_last_of_several_prints() -> None:
    assert _last_print(at((0, lines("old")), (1, lines("new")))) == lines("new")
    assert _last_print(at((0, lines("old")), (1, lines("older")), (1.01, ""), (2, lines("new")))) == lines("new")


def test_a_print_that_stopped_in_the_middle_is_one_print() -> None:
    head, tail = lines("new", range(STEADY)), lines("new", range(STEADY, PAGES))
    assert _last_print(at((0, lines("old")), (1, head), (1.4, tail))) == lines("new")
    # A pause in the print before it makes no difference.
    old_head, old_tail = lines("old", range(STEADY + 1)), lines("old", range(STEADY + 1, PAGES))
    assert _last_print(at((0, old_head), (0.4, old_tail), (1, head), (1.4, tail))) == lines("new")


def test_only_allocated_pages_are_printed() -> None:
    few = lines("new", range(STEADY, STEADY + 1))
    assert _last_print(at((0, lines("old")), (1, few))) == few


def test_without_a_pause_it_is_what_follows_the_first_print() -> None:
    pieces = at(*((step / 20, lines(f"print {step}")) for step in range(5)))
    assert _last_print(pieces) == "".join(lines(f"print {step}") for step in range(1, 5))
