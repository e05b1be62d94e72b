"""The places of the host's runner in the address space of programs.

Its text and control mapping have fixed places, and its stack is where every program's stack is. kerneld's side has
mappings at the same places. These mappings are not compared.
"""

from __future__ import annotations

from typing import NamedTuple

from kerneld.referee.outcome import Mapping
from shared.uapi.page import TASK_SIZE

TEXT_START = 0x5555_5555_4000
"""The address of a position-independent program without randomisation. kerneld's fresh process has its text there
too."""
CONTROL_START = 0x5555_5000_0000
AREA_BYTES = 32 * 4096
"""The size of the control mapping for each process: AREA in host.c."""


class Layout(NamedTuple):
    """The places of the runner's mappings."""

    brk: int
    """The heap's start."""
    taken: tuple[tuple[int, int], ...]
    """The ranges of text and control mapping."""
    lowest_hint: int
    """The address to which the host rounds up a hint of the second page."""
    task_size: int = TASK_SIZE
    """The end of user space. It is higher with page tables of five levels."""
    data_bytes: int = 0
    """The data of the runner's program in bytes: RLIMIT_DATA counts it with the heap."""

    def is_taken(self, mapping: Mapping) -> bool:
        """Return whether a mapping belongs to the runner itself."""
        if mapping.name in ("[stack]", "[vsyscall]"):
            return True
        return any(start <= mapping.start and mapping.end <= end for start, end in self.taken)
