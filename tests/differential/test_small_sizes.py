"""Small sizes of kerneld's inner structures: short programs cross their borders, and see nothing of them."""

from __future__ import annotations

import ast
import inspect
from bisect import bisect_right

import pytest

from kerneld.mm.space.vma import Vma
from kerneld.mm.space.vma_tree import VmaTree
from kerneld.referee.difference import Here
from kerneld.referee.generate import generate
from kerneld.referee.match import Match
from kerneld.referee.program import At, Op, from_json
from kerneld.referee.small_sizes import SMALL_SIZES, small_sizes
from shared.uapi.mman import Map
from shared.uapi.page import PAGE_SIZE, Vaddr
from tests.differential.agreement import REGRESSIONS, agree

PROGRAMS = 6
ROW, LAST = 0x7000_0000_0000, 0x7000_0000_0000 + 10 * PAGE_SIZE
FLAGS = (Map.PRIVATE | Map.ANONYMOUS | Map.FIXED).value
OVER_A_BORDER = (
    Op(0, "mmap", (At(-1, ROW), PAGE_SIZE, 3, FLAGS, 0), times=6, stride=2 * PAGE_SIZE),
    Op(0, "munmap", (At(-1, LAST), PAGE_SIZE)),
    Op(0, "mmap", (At(-1, LAST - PAGE_SIZE), 3 * PAGE_SIZE, 3, FLAGS, 0)),
    Op(0, "touch", (At(-1, LAST - PAGE_SIZE), 3 * PAGE_SIZE, 1)),
)
"""The last of the row and the stack are one chunk. It goes, and a new one of the chunk before takes its place."""


def finds_in_one_chunk(self: VmaTree, vaddr: Vaddr) -> Vma | None:
    """A mistake that kerneld had: the last VMA of the chunk before may reach over the address."""
    number = bisect_right(self._firsts, vaddr) - 1
    position = bisect_right(self._starts[number], vaddr)
    vma = self._chunks[number][position - 1] if position else None
    return vma if vma is not None and vaddr < vma.end else self._at(number, position)


def looks_up_in_one_chunk(self: VmaTree, vaddr: Vaddr) -> Vma | None:
    """The same mistake."""
    vma = finds_in_one_chunk(self, vaddr)
    return vma if vma is not None and vma.start <= vaddr else None


def test_each_is_smaller_than_the_usual_size_and_goes_again() -> None:
    usual = [getattr(module, name) for module, name, _ in SMALL_SIZES]
    with small_sizes():
        for (module, name, size), before in zip(SMALL_SIZES, usual, strict=True):
            assert getattr(module, name) == (size.rule if isinstance(size, Here) else size) < before
    assert [getattr(module, name) for module, name, _ in SMALL_SIZES] == usual


def test_a_size_that_is_made_of_another_is_in_the_list_too() -> None:
    """As the mask of a number of entries: with one of them small, and the other not, a set has other members."""
    listed = {(module.__name__, name) for module, name, _ in SMALL_SIZES}
    made = {
        (module.__name__, target.id)
        for module in {module for module, _, _ in SMALL_SIZES}
        for line in ast.parse(inspect.getsource(module)).body
        if isinstance(line, ast.Assign)
        for target in line.targets
        if isinstance(target, ast.Name)
        and any((module.__name__, part.id) in listed for part in ast.walk(line.value) if isinstance(part, ast.Name))
    }
    assert made
    assert made <= listed


def test_a_mistake_at_a_border_is_found_by_a_short_program(match: Match, monkeypatch: pytest.MonkeyPatch) -> None:
    assert match.play(OVER_A_BORDER, small=True) is None
    monkeypatch.setattr(VmaTree, "find", finds_in_one_chunk)
    monkeypatch.setattr(VmaTree, "lookup", looks_up_in_one_chunk)
    assert match.play(OVER_A_BORDER) is None
    divergence = match.play(OVER_A_BORDER, small=True)
    assert divergence is not None
    assert divergence.step == len(OVER_A_BORDER) - 1


def test_random_programs(match: Match) -> None:
    for number in range(PROGRAMS):
        match.ours.check_invariants(number == 0)
        agree(match, generate(f"small-{number}", 40), small=True)
    match.ours.check_invariants(False)


def test_what_was_mended_stays_so(match: Match) -> None:
    kept = REGRESSIONS[::9]
    assert kept
    for file in kept:
        agree(match, from_json(file.read_text()), small=True)
