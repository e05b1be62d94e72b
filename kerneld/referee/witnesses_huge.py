"""The witnesses of the known differences of huge pages: they are run in the mode with huge pages."""

from __future__ import annotations

from kerneld.referee.outcome import PM_MMAP_EXCLUSIVE, PM_PRESENT, PM_SOFT_DIRTY
from kerneld.referee.program import At, Base, Op
from kerneld.referee.witness import Played, Stage
from shared.uapi.mman import MLOCK_ONFAULT, Madv, Map, Prot
from shared.uapi.page import PAGE_SIZE, PMD_SIZE

P = PAGE_SIZE
_RW = (Prot.READ | Prot.WRITE).value
_READ, _WRITE = 0, 1
_PLACE = 0x7FFF_C000_0000
_MANY = 200
"""Pages."""
_AT = At(Base.ZERO, _PLACE)
_KPF_LRU, _KPF_MLOCKED = 1 << 5, 1 << 33
"""Bits of kpageflags: Linux v6.8 include/uapi/linux/kernel-page-flags.h and include/linux/kernel-page-flags.h."""


def _page(number: int) -> At:
    return At(Base.ZERO, _PLACE + number * P)


def _touch(number: int, access: int, who: int = 0) -> Op:
    return Op(who, "touch", (_page(number), P, access))


def _advise(number: int, pages: int, advice: Madv, who: int = 0) -> Op:
    return Op(who, "madvise", (_page(number), pages * P, advice.value))


def _huge_page(access: int, advice: Madv = Madv.HUGEPAGE) -> tuple[Op, ...]:
    """The operations that make a huge page, or single pages without advice; a write also fills its pages 0 and 9."""
    flags = (Map.PRIVATE | Map.ANONYMOUS | Map.FIXED).value
    made = (Op(0, "mmap", (_AT, PMD_SIZE, _RW, flags, 0)), Op(0, "madvise", (_AT, PMD_SIZE, advice.value)))
    if access == _READ:
        return (*made, _touch(0, _READ))
    return (*made, *(Op(0, "store", (_page(number), 1), data=b"\xf5") for number in (0, 9)))


def maps_zero_pages_after_a_split(stage: Stage) -> bool:
    """Page 5, behind the advised page, was never written: the zero page maps it, or still the huge page."""
    return _maps_the_zero_page(stage.play(*_huge_page(_WRITE), _advise(9, 1, Madv.COLD)))


def maps_soft_dirty_zero_pages_after_a_split(stage: Stage) -> bool:
    """The same in a mapping that is not soft-dirty, whose huge page is: is the entry of page 5?"""
    made, *written = _huge_page(_WRITE)
    played = stage.play(made, _not_soft_dirty(), *written, _advise(9, 1, Madv.COLD))
    return _maps_the_zero_page(played) and played.view.pages[_PLACE + 5 * P] & PM_SOFT_DIRTY != 0


def _maps_the_zero_page(played: Played) -> bool:
    word = played.view.pages.get(_PLACE + 5 * P, 0)
    return bool(word & PM_PRESENT) and not word & PM_MMAP_EXCLUSIVE


def splits_and_leaves_soft_dirty_bits(stage: Stage) -> bool:
    """A huge page is written, and then not soft-dirty; advice for one of its pages splits it."""
    played = stage.play(*_huge_page(_WRITE), _not_soft_dirty(), _advise(9, 1, Madv.COLD))
    return not any(word & PM_SOFT_DIRTY for word in played.view.pages.values())


def _not_soft_dirty() -> Op:
    return Op(0, "clear_refs", (0,), data=b"4")


def splits_into_clean_entries(stage: Stage) -> bool:
    """A huge page is written, and then not soft-dirty; one of its pages becomes read-only. Is page 5 soft-dirty?"""
    written = _huge_page(_WRITE)
    played = stage.play(*written, _not_soft_dirty(), _protect(0, Prot.READ.value))
    before, after = (
        state.views[0].pages.get(_PLACE + 5 * P, 0) & PM_SOFT_DIRTY for state in (played[len(written) - 1], played[-1])
    )
    return before != 0 and after == 0


def counts_nothing_that_is_inaccessible(stage: Stage) -> bool:
    """A huge page loses all its rights, and is resident."""
    played = stage.play(*_huge_page(_WRITE), Op(0, "mprotect", (_AT, PMD_SIZE, 0)))
    return played.view.totals["rollup Rss"] == 0


def stays_locked_when_its_entry_is_split(stage: Stage) -> bool:
    """A page of a locked huge page becomes read-only. Only root sees whether the rest is still locked."""
    played = stage.play(*_huge_page(_WRITE), _lock(), _protect(0, Prot.READ.value))
    return _is_locked(played.view.page_flags)


def asks_each_page_whether_it_is_exclusive(stage: Stage) -> bool:
    """The child has a copy of the first page, and maps the others as its parent does."""
    played = stage.play(*_huge_page(_WRITE), Op(0, "fork", (1,)), _touch(0, _WRITE, 1))
    first, second = (played.view.pages.get(_PLACE + number * P, 0) & PM_MMAP_EXCLUSIVE for number in range(2))
    return first != 0 and second == 0


def unlocks_many_entries_once(stage: Stage) -> bool:
    """The child maps the huge page by small entries. It and its parent lock it, and then it unmaps two pages."""
    played = stage.play(
        *_huge_page(_WRITE),
        Op(0, "fork", (1,)),
        _protect(0, Prot.READ.value, 1),
        _protect(0, _RW, 1),
        _lock(1),
        _lock(),
        Op(1, "munmap", (_page(20), 2 * P)),
    )
    return _is_locked(played.view.page_flags)


def _lock(who: int = 0) -> Op:
    """Lock what is there. mlock itself would give each its own pages."""
    return Op(who, "mlock2", (_AT, PMD_SIZE, MLOCK_ONFAULT))


def _protect(number: int, prot: int, who: int = 0) -> Op:
    return Op(who, "mprotect", (_page(number), P, prot))


def _is_locked(page_flags: dict[int, int]) -> bool:
    return page_flags.get(_PLACE, 0) & _KPF_MLOCKED != 0


def writes_make_the_huge_zero_page_huge(stage: Stage) -> bool:
    """After a write to one page of the huge zero page, the next page still is the zero page, or has a new frame too."""
    played = stage.play(*_huge_page(_READ), _touch(0, _WRITE))
    return bool(played.view.pages.get(_PLACE + P, 0) & PM_MMAP_EXCLUSIVE)


def asks_the_page_whether_it_is_shared(stage: Stage) -> bool:
    """The child advises a page that both map: the huge page stays whole. Its parent, which maps it whole, splits it."""
    return _stays_whole(stage, 1) and not _stays_whole(stage, 0)


def asks_all_mappings_whether_it_is_shared(stage: Stage) -> bool:
    """The parent advises a page, and the huge page stays whole: the child maps other pages than the first."""
    return _stays_whole(stage, 0)


def _stays_whole(stage: Stage, who: int) -> bool:
    """The child has a copy of the first page. One of the two advises another page: the huge page is split, or stays
    whole. After the child's end, its parent's writes to many of its pages take a fault at each page, or one fault (and
    a few more on a processor that has cached entries before).
    """
    store = Op(1, "store", (_AT, 1), data=b"\xf8")
    many = Op(0, "touch", (_page(100), _MANY * P, _WRITE))
    played = stage.play(
        *_huge_page(_WRITE), Op(0, "fork", (1,)), store, _advise(5, 1, Madv.COLD, who), Op(1, "exit"), many
    )
    faults = played[-1].outcome.min_flt
    return faults is not None and 0 < faults < _MANY


def knows_who_shares_it(stage: Stage) -> bool:
    """The child keeps pages 9 to 12, and its parent page 0 and others. The child frees page 9: the huge page is split
    for that, or stays whole. It has fewer mappings than pages, and one of its first page.
    """
    played = stage.play(
        *_huge_page(_WRITE),
        Op(0, "fork", (1,)),
        _unmap(0, 9, 1),
        _unmap(13, 499, 1),
        _unmap(9, _MANY),
        _advise(9, 1, Madv.FREE, 1),
    )
    return played[-1].views[1].totals["rollup LazyFree"] == 0


def _unmap(number: int, pages: int, who: int = 0) -> Op:
    return Op(who, "munmap", (_page(number), pages * P))


def collapses_what_is_read_only(stage: Stage) -> bool:
    """After a fork none of the child's entries is writable."""
    program = (*_huge_page(_WRITE, Madv.NOHUGEPAGE), _advise(0, 512, Madv.NORMAL), _advise(0, 512, Madv.HUGEPAGE))
    played = stage.play(*program, Op(0, "fork", (1,)), _advise(0, 512, Madv.COLLAPSE, who=1))
    return played.rets[-1] == 0


def shows_its_state_at_each_frame(stage: Stage) -> bool:
    """The second frame of a huge page has the flag LRU."""
    return bool(stage.play(*_huge_page(_WRITE)).view.page_flags.get(_PLACE + P, 0) & _KPF_LRU)
