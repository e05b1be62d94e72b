"""The lessons of the tour, in their order."""

from __future__ import annotations

from target.scenario import Scenario
from target.scenarios import anonymous, files, fork, heap, huge, null_write, program, protection, reclaim, stack_growth

TOUR: tuple[Scenario, ...] = (
    anonymous.DEMAND,
    anonymous.HOLE,
    heap.HEAP,
    heap.LARGE,
    stack_growth.STACK,
    files.FILE_SHARED,
    files.FILE_PRIVATE,
    fork.FORK,
    protection.PROTECT,
    huge.HUGE,
    reclaim.RECLAIM,
    reclaim.SWAP,
    reclaim.OOM,
    program.EXEC,
    program.EXIT,
)
ALL: tuple[Scenario, ...] = (*TOUR, null_write.NULL_WRITE)
"""The tour, and the scenarios that are played only by name."""
