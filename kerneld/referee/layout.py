"""Where the host's runner lies in the address space that programs have.

Its text and control mapping stand at fixed places, its stack where every program's is. kerneld's side has something at
the same places, and neither side's is compared.
"""

from __future__ import annotations

from typing import NamedTuple

from kerneld.referee.outcome import Mapping
from shared.uapi.page import TASK_SIZE

TEXT_START = 0x5555_5555_4000
"""Where a position-independent program is loaded without randomisation, and kerneld's fresh process has its own."""
CONTROL_START = 0x5555_5000_0000
AREA_BYTES = 32 * 4096
"""Of the control mapping, for each process: AREA in host.c."""


class Layout(NamedTuple):
    """The runner's places."""

    brk: int
    """The heap's start."""
    taken: tuple[tuple[int, int], ...]
    """The ranges of text and control mapping."""
    lowest_hint: int
    """What a hint of the second page is rounded up to."""
    task_size: int = TASK_SIZE
    """Where the user's addresses end: further up where page tables have five levels."""
    data_bytes: int = 0
    """What of the runner's program is taken for data: RLIMIT_DATA counts it with the heap."""

    def is_taken(self, mapping: Mapping) -> bool:
        """Tell whether a mapping is the runner's own."""
        if mapping.name in ("[stack]", "[vsyscall]"):
            return True
        return any(start <= mapping.start and mapping.end <= end for start, end in self.taken)
