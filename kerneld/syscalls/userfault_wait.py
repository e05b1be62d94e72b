"""A request that has met a page which a userfaultfd has to give: it waits, and is made again from its start.

So this is for requests that change nothing but the memory that they access. Others wait where they are.
Answers to Linux v6.8 arch/x86/mm/fault.c:do_user_addr_fault(): VM_FAULT_RETRY, then FAULT_FLAG_TRIED.
"""

from __future__ import annotations

from collections.abc import Callable

from kerneld.mm.space.userfaultfd import AwaitsPage, Userfault
from kerneld.syscalls.answer import Answer, Call, Pieces, Work, to_its_end


def after_userfaults(call: Call, handler: Callable[[Call], int | Answer | Work], fault: Userfault) -> Pieces:
    """Wait for the page of a fault, make the request again, and so on until it meets no such page."""
    args, data, process = call.args, call.data, call.process
    while True:
        yield from fault.wait(call.thread.tid)
        call.rewind(args, data)
        faults = process.min_flt
        try:
            begun = handler(call)
        except AwaitsPage as again:
            fault = again.fault
            continue
        result = yield from to_its_end(begun)
        taken = max(process.min_flt - faults, 1)
        process.min_flt = faults if fault.is_major else faults + taken
        process.maj_flt += taken if fault.is_major else 0
        return result
