"""Entries, differences and folding: a fold must lose nothing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from inspector.table import Change, Counts, Entry, Frames, Run, change_of, count, diff, fold, parse_table, unfolded
from shared.uapi.page import PAGE_SIZE
from shared.uapi.shadowpt import SHADOW_PTE, Spte

BASE = 0x7F00_0000_0000
FLAGS = [
    0,
    Spte.VADDR_ALLOCATED,
    Spte.VADDR_ALLOCATED | Spte.VADDR_ANONYMOUS,
    Spte.VADDR_ALLOCATED | Spte.VADDR_ANONYMOUS | Spte.PTE_MAPPED,
    Spte.VADDR_ALLOCATED | Spte.PTE_MAPPED,
]
pages = st.tuples(st.sampled_from(FLAGS), st.integers(1, 4), st.sampled_from(list(Change)))


def table(cells: list[tuple[int, int]]) -> list[Entry]:
    """Return the entries from BASE on, of (flags, pfn) each."""
    return [Entry(BASE + index * PAGE_SIZE, pfn, flags) for index, (flags, pfn) in enumerate(cells)]


def test_bytes_become_entries_and_the_rest_of_the_last_page_does_not() -> None:
    raw = SHADOW_PTE.pack(BASE, 7, 5) + SHADOW_PTE.pack(BASE + PAGE_SIZE, 0, 3) + bytes(4096 - 48)
    assert parse_table(raw, BASE, BASE + 2 * PAGE_SIZE) == [Entry(BASE, 7, 5), Entry(BASE + PAGE_SIZE, 0, 3)]


def test_counts() -> None:
    assert count(table([(0, 0), (1, 0), (3, 0), (7, 9), (5, 8)])) == Counts(5, allocated=4, anonymous=2, mapped=2)


def test_changes() -> None:
    none, fresh, mapped = Entry(BASE, 0, 0), Entry(BASE, 0, 3), Entry(BASE, 9, 7)
    assert change_of(none, none) is Change.NONE
    assert change_of(none, fresh) is Change.GAINED
    assert change_of(fresh, mapped) is Change.GAINED
    assert change_of(mapped, fresh) is Change.LOST
    assert change_of(mapped, none) is Change.LOST
    assert change_of(mapped, mapped._replace(pfn=10)) is Change.ALTERED
    assert change_of(fresh, Entry(BASE, 4, 5)) is Change.ALTERED


def test_the_first_print_has_no_changes() -> None:
    entries = table([(3, 0), (7, 1)])
    assert diff(None, entries) == [Change.NONE, Change.NONE]
    assert diff(table([(3, 0), (3, 0)]), entries) == [Change.NONE, Change.GAINED]


def test_consecutive_frames_fold() -> None:
    entries = table([(7, 5), (7, 6), (7, 7), (7, 9)])
    assert list(fold(entries, diff(None, entries))) == [
        Run(entries[0], 3, Frames.CONSECUTIVE, Change.NONE),
        Run(entries[3], 1, Frames.CONSECUTIVE, Change.NONE),
    ]


def test_the_zero_page_under_many_pages_folds() -> None:
    entries = table([(7, 1), (7, 1), (7, 1), (7, 2)])
    runs = list(fold(entries, diff(None, entries)))
    assert [(run.pages, run.frames) for run in runs] == [(3, Frames.SAME), (1, Frames.CONSECUTIVE)]


def test_a_run_of_consecutive_frames_does_not_turn_into_one_of_the_same() -> None:
    entries = table([(7, 1), (7, 2), (7, 1)])
    assert [run.pages for run in fold(entries, diff(None, entries))] == [2, 1]


def test_a_change_ends_a_run() -> None:
    entries = table([(3, 0), (3, 0), (3, 0)])
    changes = [Change.NONE, Change.GAINED, Change.NONE]
    assert [(run.pages, run.change) for run in fold(entries, changes)] == [
        (1, Change.NONE),
        (1, Change.GAINED),
        (1, Change.NONE),
    ]


def test_a_whole_table_of_nothing_is_one_run() -> None:
    entries = table([(0, 0)] * 2048)
    (run,) = fold(entries, diff(None, entries))
    assert (run.pages, run.end) == (2048, BASE + 0x80_0000)


def expand(runs: list[Run]) -> list[tuple[Entry, Change]]:
    """Return the entries and changes that runs stand for."""
    step = {Frames.ABSENT: 0, Frames.CONSECUTIVE: 1, Frames.SAME: 0}
    return [
        (
            Entry(run.first.vaddr + page * PAGE_SIZE, run.first.pfn + page * step[run.frames], run.first.flags),
            run.change,
        )
        for run in runs
        for page in range(run.pages)
    ]


@given(st.lists(pages, max_size=60))
def test_folding_loses_nothing(cells: list[tuple[int, int, Change]]) -> None:
    entries = table([(flags, pfn if flags & Spte.PTE_MAPPED else 0) for flags, pfn, _change in cells])
    changes = [change for _flags, _pfn, change in cells]
    whole = list(zip(entries, changes, strict=True))
    folded = list(fold(entries, changes))
    assert expand(folded) == whole
    assert expand(list(unfolded(entries, changes))) == whole
    assert len(folded) <= len(whole)
