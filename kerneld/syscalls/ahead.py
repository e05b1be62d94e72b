"""Takes the faults of stores together, if a batch stores to one page after the other.

The result of the batch stays the same: faults are taken ahead only if no store of the run can fail. Knows the raw
arguments of the requests, as `kerneld.syscalls.machine` does. Linux has nothing equal; fault-around is similar.
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
"""The shortest run in pages. For a shorter run single faults are faster."""


def fault_stores_ahead(call: Call, requests: Sequence[Request], index: int) -> int:
    """Take the faults of the run of stores that starts at `requests[index]`: each store is to the page after the last.

    Returns the index after the run. The caller need not check the requests before this index again.
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
