"""Stores that walk through memory, page by page in one batch: their faults are taken together, before the first.

What a batch leaves behind is the same: only where no store of the run can fail is anything done ahead. Knows the
requests' raw arguments as `kerneld.syscalls.machine` does. Linux has no such thing; its likeness is fault-around.
"""

from __future__ import annotations

from collections.abc import Sequence

from kerneld.syscalls.answer import Call
from kerneld.task import cpu
from shared.uapi.page import PAGE_MASK, PAGE_SIZE
from shared.uapi.syscalls import Nr
from shared.wire import Request

STORE = int(Nr.STORE)
_FEWEST = 8
"""A run of fewer pages is faulted in faster one by one."""


def fault_stores_ahead(call: Call, requests: Sequence[Request], index: int) -> int:
    """Look at the run of stores that starts at `requests[index]`, each within the page after the last one's.

    Returns the index behind the run; everything before it needs no further look.
    """
    start = end = requests[index].args[0] & PAGE_MASK
    first = index
    while index < len(requests):
        nr, args, data = requests[index]
        vaddr, length = args[:2]
        if nr != STORE or vaddr & PAGE_MASK != end or length != len(data) or not length:
            break
        if (vaddr & ~PAGE_MASK) + length > PAGE_SIZE:
            break
        end += PAGE_SIZE
        index += 1
    if end - start >= _FEWEST * PAGE_SIZE:
        cpu.fault_ahead(call.thread, start, end)
    return max(index, first + 1)
