"""What is read in a printed table, whatever its format."""

from __future__ import annotations

import pytest

from kerneld.commands.grade.cell.reading import ADDRESS, PFN, Window, indexed_segments, mask_pfn, plain, segments
from kerneld.commands.grade.cell.states import learn
from kerneld.commands.grade.rows import ROWS

START = 0x10_0000_0000
WINDOW = Window(START, 5)
HELD = {0: (0x1234, 7), 1: (0, 3), 2: (0, 0), 3: (0, 1), 4: (0x4321, 5)}
WORDS = ("allocated", "anonymous", "mapped")


def rows(form: str) -> str:
    """Print HELD, each page by a format with address, pfn, state and its flags."""
    lines = []
    for index, (pfn, state) in HELD.items():
        a, n, m = (bool(state & bit) for bit in (1, 2, 4))
        words = " ".join(word for word, is_set in zip(WORDS, (a, n, m), strict=True) if is_set)
        at = START + index * 4096
        lines.append(form.format(i=index, at=at, pfn=pfn, state=state, a=a, n=n, m=m, words=words))
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    "form",
    [
        "{at:#x} {pfn:#x} {state:#x}",
        "{at:x} {pfn:x} {state}",
        "{at:016X}:{pfn:08X}:{state:03b}",
        "{i}) {at} {pfn} {state}",
        "[{i}] va {at:#x} -> pfn {pfn:#x} ({words})",
        "vaddr={at:#x}, pfn={pfn}, allocated={a:d}, anonymous={n:d}, mapped={m:d}",
        "{at:#x} {pfn:#x} alloc:{a!s} anon:{n!s} map:{m!s}",
        "{words:<30}|{at:#018x}|{pfn:#x}",
        "{at:#x}\n\tpfn {pfn:#x}\n\tflags {state:#x}",
    ],
)
def test_every_format_is_read(form: str) -> None:
    text = rows(form)
    has_lines = "\n" in form
    found = segments(text, WINDOW, has_lines=has_lines)
    assert sorted(found) == [0, 1, 2, 3, 4]
    assert all(mask_pfn(found[index], pfn)[1] for index, (pfn, _state) in HELD.items() if pfn)
    states = learn(found, HELD, text)
    assert states.why_not == ""
    for index, (pfn, state) in HELD.items():
        assert [other for other in (0, 1, 3, 5, 7) if states.says(found[index], pfn, other)] == [state]


@pytest.mark.parametrize(
    ("form", "why"),
    [
        ("{at:#x} {pfn:#x}", "have the same text"),
        ("{at:#x} {pfn:#x} anonymous={a:d} allocated={n:d} mapped={m:d}", "the text says"),
        ("{at:#x} {pfn:#x} allocated={a:d} anonymous={a:d} mapped={m:d}", "have the same text"),
        ("{at:#x} {pfn:#x} allocated={a:d} anonymous={n:d} mapped=1", "have the same text"),
        ("{i} {pfn:#x} {words}", "no address of the range"),
    ],
)
def test_wrong_states_are_found(form: str, why: str) -> None:
    text = rows(form)
    assert why in learn(segments(text, WINDOW), HELD, text).why_not


def test_columns_are_compared_with_the_line_that_names_them() -> None:
    body = rows("{at:#x} {pfn:#x} {a:d} {n:d} {m:d}")
    assert learn(segments(body, WINDOW), HELD, f"VADDR PFN ALLOCATED ANON MAPPED\n{body}").why_not == ""
    why = learn(segments(body, WINDOW), HELD, f"VADDR PFN ANON ALLOCATED MAPPED\n{body}").why_not
    assert why.startswith("the columns are not in the order of their names")


def test_a_range_counts_for_its_pages_and_a_headline_for_none() -> None:
    text = f"=== {START:#x} - {WINDOW.end:#x} ===\n{START:#x}-{START + 3 * 4096:#x} 3 pages anonymous\n"
    text += f"{START + 2 * 4096:#x} pfn 0x77\n"
    found = segments(text, WINDOW)
    assert found == {0: f"{ADDRESS} 3 pages anonymous", 1: f"{ADDRESS} 3 pages anonymous", 2: f"{ADDRESS} pfn 0x77"}


def test_lines_with_an_index_stand_for_pages_where_no_address_is_printed() -> None:
    assert indexed_segments("table\n" + rows("page {i}: {pfn:#x}"), WINDOW)[4] == f"page {ADDRESS}: 0x4321"
    assert indexed_segments("1 2 3\nnothing\n", WINDOW) == {}


def test_a_frame_number_is_a_whole_number() -> None:
    assert mask_pfn(f"{ADDRESS} 0x1234", 0x1234) == (f"{ADDRESS} {PFN}", True)
    assert mask_pfn(f"{ADDRESS} 4660", 0x1234)[1]
    assert not mask_pfn(f"{ADDRESS} 0x12345 0x1234000", 0x1234)[1]


def test_commands_for_the_terminal_are_no_text() -> None:
    assert plain("\x1b[2J\x1b[H\x1b[1;31m0x10\x1b[0m\r\n") == "0x10\n"


def test_each_row_has_a_name_points_and_words() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)
    assert all(row.points > 0 and row.title and row.expected and row.mistake for row in ROWS)
