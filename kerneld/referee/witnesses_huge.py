"""The witnesses of the known differences of huge pages: played in the mode that has them."""

from __future__ import annotations

from kerneld.referee.outcome import PM_MMAP_EXCLUSIVE, PM_PRESENT
from kerneld.referee.program import At, Base, Op
from kerneld.referee.witness import Stage
from shared.uapi.mman import Madv, Map, Prot
from shared.uapi.page import PAGE_SIZE, PMD_SIZE

P = PAGE_SIZE
_RW = (Prot.READ | Prot.WRITE).value
_READ, _WRITE = 0, 1
_PLACE = 0x7FFF_C000_0000
_MANY = 200
"""Pages."""
_AT = At(Base.ZERO, _PLACE)


def _page(number: int) -> At:
    return At(Base.ZERO, _PLACE + number * P)


def _touch(number: int, access: int, who: int = 0) -> Op:
    return Op(who, "touch", (_page(number), P, access))


def _advise(number: int, pages: int, advice: Madv, who: int = 0) -> Op:
    return Op(who, "madvise", (_page(number), pages * P, advice.value))


def _huge_page(access: int, advice: Madv = Madv.HUGEPAGE) -> tuple[Op, ...]:
    """A huge page, or what an access makes without; its pages 0 and 9 hold more than zeros where it is written."""
    flags = (Map.PRIVATE | Map.ANONYMOUS | Map.FIXED).value
    made = (Op(0, "mmap", (_AT, PMD_SIZE, _RW, flags, 0)), Op(0, "madvise", (_AT, PMD_SIZE, advice.value)))
    if access == _READ:
        return (*made, _touch(0, _READ))
    return (*made, *(Op(0, "store", (_page(number), 1), data=b"\xf5") for number in (0, 9)))


def maps_zero_pages_after_a_split(stage: Stage) -> bool:
    """Page 5 was never written: behind the advised page it is the zero page's, or the huge page's still."""
    played = stage.play(*_huge_page(_WRITE), _advise(9, 1, Madv.COLD))
    word = played.view.pages.get(_PLACE + 5 * P, 0)
    return bool(word & PM_PRESENT) and not word & PM_MMAP_EXCLUSIVE


def writes_make_the_huge_zero_page_huge(stage: Stage) -> bool:
    """A write to one page of it leaves the next one's frame to the zero page, or gives it one too."""
    played = stage.play(*_huge_page(_READ), _touch(0, _WRITE))
    return bool(played.view.pages.get(_PLACE + P, 0) & PM_MMAP_EXCLUSIVE)


def asks_all_pages_whether_it_is_shared(stage: Stage) -> bool:
    """The child has its own first page, and advises another: the parent's huge page is split for that, or stays one.

    Then a write to many of its pages, when the child has gone, takes a fault at each, or one, and some that a processor
    takes because it has noted pages before.
    """
    store = Op(1, "store", (_AT, 1), data=b"\xf8")
    many = Op(0, "touch", (_page(100), _MANY * P, _WRITE))
    played = stage.play(
        *_huge_page(_WRITE), Op(0, "fork", (1,)), store, _advise(5, 1, Madv.COLD, 1), Op(1, "exit"), many
    )
    faults = played[-1].outcome.min_flt
    return faults is not None and 0 < faults < _MANY


def collapses_what_is_read_only(stage: Stage) -> bool:
    """After a fork none of the child's entries is writable."""
    program = (*_huge_page(_WRITE, Madv.NOHUGEPAGE), _advise(0, 512, Madv.NORMAL), _advise(0, 512, Madv.HUGEPAGE))
    played = stage.play(*program, Op(0, "fork", (1,)), _advise(0, 512, Madv.COLLAPSE, who=1))
    return played.rets[-1] == 0
