"""Names that would steer a terminal: set its title, move its cursor, turn the direction of what follows."""

from __future__ import annotations

import pytest

from shared.terminal import escaped, escaped_pieces, one_line

EVIL = "a\x1b]0;title\x07\u202e\x9bm\r"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain and \u00e9", "plain and \u00e9"),
        ("\x1b[2J", "\\033[2J"),
        ("line\n\ttab", "line\n\ttab"),
        ("\u009b", "\\302\\233"),
        ("\udcff", "\\377"),
    ],
)
def test_what_is_not_for_printing_is_octal(text: str, shown: str) -> None:
    assert escaped(text) == shown


def test_a_character_that_is_cut_between_two_pieces() -> None:
    assert b"".join(escaped_pieces([b"\xc3", b"\xa9\xc2", b"\x9b\n", b"\xff"])).decode() == "\u00e9\\302\\233\n\\377"


def test_a_name_in_a_line_stays_in_it() -> None:
    assert one_line("two\nlines\x1b") == "two?lines?"
