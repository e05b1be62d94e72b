"""The page faults that a call takes in the kernel: they count for the process that makes the call.

Source: Linux v6.8 mm/memory.c:mm_account_fault(): current->min_flt and maj_flt count faults by get_user_pages() too.
"""

from __future__ import annotations

from kerneld.mm.space.mm import MmStruct
from kerneld.syscalls.answer import Answer, Call, Pieces, Work
from kerneld.task.task import Process


def counting_faults(process: Process, mm: MmStruct, pieces: Pieces) -> Pieces:
    """Run the pieces of a call, and count the faults that each piece takes in an address space for a process."""
    try:
        while True:
            faults, major = mm.range_faults, mm.range_major_faults
            try:
                waits_for = next(pieces)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            finally:
                process.min_flt += mm.range_faults - faults
                process.maj_flt += mm.range_major_faults - major
            yield waits_for
    finally:
        pieces.close()


def counted_work(call: Call, pieces: Pieces) -> int | Answer | Work:
    """Run a call in pieces that take faults in the caller's memory."""
    return Work(counting_faults(call.process, call.mm, pieces)).go_on()
