"""Random programs for machines with swap: plain programs with many more calls that swap out and in.

Owns the weights.
"""

from __future__ import annotations

from typing import ClassVar

from kerneld.referee import userfaultfds
from kerneld.referee.generate import Generator
from shared.uapi.mman import Madv

_OTHERS = [advice.value for advice in Madv if advice not in (Madv.HWPOISON, Madv.SOFT_OFFLINE, Madv.COLLAPSE)]
_SWAPPING = (Madv.PAGEOUT, Madv.PAGEOUT, Madv.PAGEOUT, Madv.WILLNEED, Madv.FREE, Madv.COLD, Madv.POPULATE_READ)


class SwapGenerator(Generator):
    """The program of one state of `rng`."""

    weights: ClassVar[dict[str, float]] = Generator.weights | {
        "madvise": 30, "process_madvise": 4, "mincore": 6, "fork": 5, "touch": 12,
    } | dict.fromkeys(userfaultfds.CALLS, 0)  # fmt: skip
    advice: ClassVar[list[int]] = _OTHERS + 6 * [advice.value for advice in _SWAPPING]
