"""The records in which drops and grants travel: docs/abi.md, "Native programs". Pure functions."""

from __future__ import annotations

import struct

from kerneld.hw.paging import PTE_PFN_MASK
from kerneld.tlb.rights import PAGE_BITS
from shared.uapi.page import PAGE_SHIFT, Vaddr

RECORD = struct.Struct("<IIQ")
"""struct kd_tlb: size, number of operations, number of the agent's last order."""
OPERATION = struct.Struct("<QQQ")
"""start, length in bytes with the PROT_ bits of a grant (0: drop) and its key in bits 4 to 7, offset in the RAM's
file."""
ONE = struct.Struct("<IIQQQQ")
"""A record with one operation."""
MOST_OPERATIONS = 48
"""Maximum number of operations in one record: it then fits the stub's buffer for the reply to a fault."""
DISMISSED = 0xFFFF_FFFF
"""Number of operations of the order that sends an agent home."""
Span = tuple[Vaddr, Vaddr]


def pack_record(drops: list[Span], grants: list[tuple[Vaddr, int, int]], orders: int) -> bytes:
    """Return a record; the drops come first."""
    operations = [OPERATION.pack(start, end - start, 0) for start, end in drops]
    for start, pages, word in grants:
        operations.append(OPERATION.pack(start, pages << PAGE_SHIFT | word & PAGE_BITS, word & PTE_PFN_MASK))
    size = RECORD.size + len(operations) * OPERATION.size
    return RECORD.pack(size, len(operations), orders) + b"".join(operations)


def joined(spans: list[Span]) -> list[Span]:
    """Return what some spans cover, in order and without overlaps."""
    spans = sorted(spans)
    found = spans[:1]
    for start, end in spans:
        last_start, last_end = found[-1]
        if start > last_end:
            found.append((start, end))
        elif end > last_end:
            found[-1] = last_start, end
    return found
