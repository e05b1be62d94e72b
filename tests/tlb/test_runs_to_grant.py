"""Which neighbours a refill grants, as runs: the same pages as one by one, in as few mappings as their frames allow."""

from __future__ import annotations

import random

from kerneld.hw.paging import PTE_ACCESSED, PTE_DIRTY, PTE_NX, PTE_PRESENT, PTE_RW, PTE_USER
from kerneld.tlb.rights import tlb_word
from kerneld.tlb.runs import runs_to_grant
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE

READABLE = PTE_PRESENT | PTE_USER | PTE_ACCESSED
WRITABLE = READABLE | PTE_RW | PTE_DIRTY | PTE_NX


def entry(pfn: int, bits: int = READABLE) -> int:
    return pfn << PAGE_SHIFT | bits


def test_frames_one_after_another_are_one_run() -> None:
    entries = [entry(pfn) for pfn in range(7, 11)]
    assert runs_to_grant(entries, [0] * 4, 2) == [(0, 4, tlb_word(entries[0]))]


def test_other_rights_and_other_frames_begin_a_run() -> None:
    entries = [entry(7), entry(8, WRITABLE), entry(9, WRITABLE), entry(12, WRITABLE)]
    words = [tlb_word(one) for one in entries]
    assert runs_to_grant(entries, [0] * 4, 0) == [(0, 1, words[0]), (1, 2, words[1]), (3, 1, words[3])]


def test_what_has_been_granted_is_left_out_but_for_the_page_itself() -> None:
    entries = [entry(pfn) for pfn in range(7, 11)]
    words = [tlb_word(one) for one in entries]
    assert runs_to_grant(entries, words, 2) == [(2, 1, words[2])]
    assert runs_to_grant(entries, [0, words[1], 0, 0], 3) == [(0, 1, words[0]), (2, 2, words[2])]


def test_a_page_that_is_not_there_or_not_accessed_is_left_out() -> None:
    entries = [entry(7), 0, entry(9), entry(10, READABLE & ~PTE_ACCESSED), entry(11)]
    assert [(at, count) for at, count, _ in runs_to_grant(entries, [0] * 5, 0)] == [(0, 1), (2, 1), (4, 1)]


def test_the_runs_are_the_pages_one_by_one() -> None:
    chosen = random.Random(11)
    kinds = (0, READABLE, WRITABLE, READABLE & ~PTE_ACCESSED, WRITABLE & ~PTE_DIRTY)
    for _ in range(2000):
        frame = chosen.randrange(2, 1000)
        bits = [chosen.choice(kinds) for _ in range(16)]
        gaps = [chosen.random() < 0.2 for _ in range(16)]
        entries = [
            entry(frame + at + 100 * gap, kind) if kind else 0
            for at, (kind, gap) in enumerate(zip(bits, gaps, strict=True))
        ]
        known = [tlb_word(one) if chosen.random() < 0.3 else 0 for one in entries]
        own = chosen.randrange(16)
        granted = {}
        for at, count, word in runs_to_grant(entries, known, own):
            granted.update({at + number: word + number * PAGE_SIZE for number in range(count)})
        words = [tlb_word(one) for one in entries]
        expected = {at: word for at, word in enumerate(words) if word and (at == own or not known[at])}
        assert granted == expected
