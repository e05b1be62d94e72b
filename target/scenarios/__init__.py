"""The lessons of the tour, in the order in which they are given."""

from __future__ import annotations

from target.scenario import Scenario
from target.scenarios import anonymous, files, fork, heap, program, protection, stack_growth

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
    program.EXEC,
    program.EXIT,
)
