"""Programs that fork again and again, and mappings beyond all that kerneld handles at once."""

from __future__ import annotations

import random

from kerneld.referee.deep import DeepGenerator
from kerneld.referee.match import Match
from kerneld.referee.outcome import WINDOW_PAGES, add_pages, windows
from kerneld.referee.program import At, Op
from kerneld.referee.wide import WideGenerator
from shared.uapi.page import PAGE_SIZE, PMD_SIZE
from tests.differential.agreement import agree

PROGRAMS, OPS = 1, 40
TABLES = 66
START = (1 << 39) - 33 * PMD_SIZE
PRESENT = 1 << 63


def test_families_of_many_generations(match: Match) -> None:
    forks = 0
    for number in range(PROGRAMS):
        program = DeepGenerator(random.Random(f"ci-{number}")).program(OPS)
        forks += sum(op.name == "fork" for op in program)
        agree(match, program, small=number == 0)
    assert forks > 4 * PROGRAMS


def test_a_mapping_of_many_tables_across_upper_tables(match: Match) -> None:
    """A page in each of 66 leaf tables, at 512 GiB: every call goes through all of them."""
    match.ours.check_invariants(False)
    length = TABLES * PMD_SIZE
    whole = At(-1, START), length
    moved = At(-1, START + (1 << 30))
    program = (
        Op(0, "mmap", (*whole, 3, 0x32, 0)),
        Op(0, "touch", (At(-1, START + 9 * PAGE_SIZE), PAGE_SIZE, 1), times=TABLES, stride=PMD_SIZE),
        Op(0, "mprotect", (*whole, 1)),
        Op(0, "fork", (1,)),
        Op(1, "mprotect", (*whole, 3)),
        Op(1, "touch", (At(-1, START + 9 * PAGE_SIZE), PAGE_SIZE, 1), times=TABLES, stride=PMD_SIZE),
        Op(0, "mremap", (*whole, length, 3, moved)),
        Op(0, "madvise", (moved, length, 4)),
        Op(1, "munmap", whole),
    )
    agree(match, program)


def test_wide_programs_of_many_tables_are_short() -> None:
    class Widest(WideGenerator):
        tables = (TABLES,)

    program = Widest(random.Random("ci")).program(40)
    assert sum(op.times == TABLES for op in program) >= 2
    assert len({op.name for op in program}) > 5


def test_every_page_of_a_long_mapping_is_looked_at_once() -> None:
    pages = WINDOW_PAGES + 5
    parts = windows(0x1000, 0x1000 + 2 * (pages - 5) * PAGE_SIZE)
    assert [low for low, _ in parts[1:]] == [high for _, high in parts[:-1]]
    longer = windows(0x1000, 0x1000 + 2 * pages * PAGE_SIZE)
    assert sum(high - low for low, high in longer) == 2 * WINDOW_PAGES * PAGE_SIZE
    for count in (3, 3000):
        found: dict[int, int] = {}
        frames: dict[int, int] = {}
        words = b"".join(
            (PRESENT | number).to_bytes(8, "little") if number == count - 1 else bytes(8) for number in range(count)
        )
        add_pages(words, 0x1000, found, frames)
        assert (found, frames) == ({count * PAGE_SIZE: PRESENT}, {count * PAGE_SIZE: count - 1})
