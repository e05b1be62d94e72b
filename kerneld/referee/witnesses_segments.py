"""The witnesses of the known differences of System V shared memory."""

from __future__ import annotations

from kerneld.referee.program import At, Base, Op
from kerneld.referee.witness import Stage
from shared.uapi.mman import Prot
from shared.uapi.page import PAGE_SIZE

P = PAGE_SIZE
_READ, _RW = Prot.READ.value, (Prot.READ | Prot.WRITE).value


def merges_with_the_part_above(stage: Stage) -> bool:
    """The lower half of an attach is made read-only, then the page below the upper half writable again."""
    return _mappings_after(stage, (At(0), 2 * P), (At(0, P), P)) == 2


def merges_no_parts(stage: Stage) -> bool:
    """The upper half of an attach is made read-only, then the page above the lower half writable again."""
    return _mappings_after(stage, (At(0, 2 * P), 2 * P), (At(0, 2 * P), P)) == 3


def _mappings_after(stage: Stage, forbidden: tuple[At, int], allowed: tuple[At, int]) -> int:
    """Return how many mappings an attach of four pages is, after one range was made read-only, one writable."""
    played = stage.play(
        Op(0, "shmget", (4 * P, 0)),
        Op(0, "shmat", (0, At(Base.ZERO), 0), slot=0),
        Op(0, "mprotect", (*forbidden, _READ)),
        Op(0, "mprotect", (*allowed, _RW)),
    )
    return len(played.mappings(played.rets[1], 4))
