"""The witnesses of the known differences of swap: they are run in the mode with swap."""

from __future__ import annotations

from kerneld.referee.numbers import parse_numbers
from kerneld.referee.program import At, Base, Op
from kerneld.referee.witness import Stage
from shared.uapi.mman import Madv, Map, Prot
from shared.uapi.page import PAGE_SIZE

_AT = At(Base.ZERO, 0x7FFF_C000_0000)
_RW = (Prot.READ | Prot.WRITE).value


def reads_in_what_may_be_written(stage: Stage) -> bool:
    """A read swaps a page in: the next write to it takes a fault, or none."""
    played = stage.play(
        Op(0, "mmap", (_AT, PAGE_SIZE, _RW, (Map.PRIVATE | Map.ANONYMOUS | Map.FIXED).value, 0)),
        Op(0, "store", (_AT, 1), data=b"\xf5"),
        Op(0, "madvise", (_AT, PAGE_SIZE, Madv.PAGEOUT.value)),
        Op(0, "load", (_AT, 1)),
        Op(0, "store", (_AT, 1), data=b"\xf8"),
    )
    return played[-1].outcome.min_flt == 0


def brings_pages_in_dirty(stage: Stage) -> bool:
    """A page was written, swapped out, and swapped in by a read: it is clean, or dirty."""
    played = stage.play(
        Op(0, "mmap", (_AT, PAGE_SIZE, _RW, (Map.PRIVATE | Map.ANONYMOUS | Map.FIXED).value, 0)),
        Op(0, "store", (_AT, 1), data=b"\xf5"),
        Op(0, "madvise", (_AT, PAGE_SIZE, Madv.PAGEOUT.value)),
        Op(0, "load", (_AT, 1)),
    )
    return parse_numbers(played.view.mappings[0].numbers)["Private_Dirty"] > 0
