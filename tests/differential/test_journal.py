"""Hosts whose file system has a journal: it writes at any moment what ftruncate fills up with zeros."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kerneld.referee.files import cut_page, has_journal
from kerneld.referee.match import Match
from kerneld.referee.program import Op
from shared.uapi.page import PAGE_SIZE

REGULAR, MEMORY_FILE = 1, 8


class Recorder:
    """A host that notes what it is told to play."""

    def __init__(self, match: Match, *, has_journal: bool) -> None:
        self.facts = match.hosts.facts._replace(has_journal=has_journal, runs_ksm=False)
        self.expected: list[Op] = []

    def expect(self, program: tuple[Op, ...], *, pages_out: bool, everything: bool) -> None:
        self.expected += program


@pytest.mark.parametrize("journal", [True, False])
def test_the_page_is_written_only_where_a_journal_would(match: Match, journal: bool) -> None:
    host = Recorder(match, has_journal=journal)
    asked = Match(match.ours, host, ())  # type: ignore[arg-type]
    asked.expect(tuple(Op(0, "ftruncate", (PAGE_SIZE + 1,), file=file) for file in (REGULAR, MEMORY_FILE)))
    assert [op.args for op in host.expected] == [(PAGE_SIZE + 1, 1) if journal else (PAGE_SIZE + 1,), (PAGE_SIZE + 1,)]
    assert ("journal" in asked.describe()) is journal


@pytest.mark.parametrize(
    ("size", "length", "page"),
    [(PAGE_SIZE, 7, 0), (7, PAGE_SIZE, 0), (PAGE_SIZE + 7, 9 * PAGE_SIZE, 1), (PAGE_SIZE, 0, None), (0, 7, None)],
)
def test_the_page_that_is_cut(size: int, length: int, page: int | None) -> None:
    assert cut_page(size, length) == page


@pytest.mark.parametrize("name", ["sdz9-8", "sdz9"])
def test_a_journal_is_found_by_the_name_of_its_device(tmp_path: Path, name: str) -> None:
    device = os.stat(tmp_path).st_dev
    (tmp_path / "sdz9").mkdir()
    (tmp_path / f"{os.major(device)}:{os.minor(device)}").symlink_to("sdz9")
    assert not has_journal(tmp_path, tmp_path / "jbd2", tmp_path)
    (tmp_path / "jbd2" / name).mkdir(parents=True)
    assert has_journal(tmp_path, tmp_path / "jbd2", tmp_path)
