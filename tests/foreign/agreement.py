"""Whether our walk, the foreign processor and the foreign walker say the same of the same RAM and CR3.

Unicorn's processor and volatility3 know no protection keys: to them bits 59 to 62 of an entry are nobody's. Our walk is
therefore asked as on a processor without them, PKRU 0. What keys deny is the hosts' to judge (`kerneld.referee`).
"""

from __future__ import annotations

import mmap
import os
import random
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from kerneld.hw.paging import PF_INSTR, PF_PROT, PF_WRITE, translate
from shared.uapi.page import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE
from tests.foreign.processor import NO_ADDRESS, Processor, private_copy, processor
from tests.foreign.walker import Walker

ACCESSES = (0, PF_WRITE, PF_INSTR)
NR_RUN = 400
"""How many addresses of each kind real instructions access, beside the MMU asked about all."""
_USER_BITS = 47

Verdicts = npt.NDArray[np.int64]
"""A row an address, a column an access: the physical address, or a negative number for a fault."""


def choose_addresses(ranges: Sequence[tuple[int, int]], count: int, seed: int = 3) -> list[int]:
    """Return `count` different user addresses, most in these ranges, the rest beside them or anywhere.

    "Beside" is one bit away: such an address shares some of the tables with one in a range, or all.
    """
    rng = random.Random(seed)
    chosen = {vaddr for edges in ranges for edge in edges for vaddr in (edge - 1, edge) if 0 <= vaddr < 1 << _USER_BITS}
    pages = sum(end - start for start, end in ranges) >> PAGE_SHIFT
    for start, end in ranges:
        step = PAGE_SIZE * max(1, pages * 2 // count)
        chosen.update(page + rng.randrange(PAGE_SIZE) for page in range(start, end, step))
    while len(chosen) < count:
        start, end = rng.choice(ranges)
        vaddr = rng.randrange(start, end)
        kind = rng.random()
        if kind < 0.35:
            vaddr ^= 1 << rng.randrange(PAGE_SHIFT, _USER_BITS)
        elif kind < 0.4:
            vaddr = rng.randrange(1 << _USER_BITS)
        chosen.add(vaddr)
    return sorted(chosen)


def judge(ram_fd: int, ram_bytes: int, cr3: int, addresses: Sequence[int]) -> Verdicts:
    """Let everyone translate all addresses for a read, a write and a fetch; return what all agree on.

    The accessed and dirty bits that this leaves in the tables have to agree too.
    """
    ours = private_copy(ram_fd, ram_bytes)
    words = memoryview(ours).cast("Q")
    root = cr3 >> PAGE_SHIFT
    said = _table((translate(words, root, vaddr, access) for vaddr in addresses for access in ACCESSES), 3)
    with processor(ram_fd, ram_bytes, cr3) as foreign:
        heard = _table((foreign.translate(vaddr, access) for vaddr in addresses for access in ACCESSES), 3)
        _agree("the processor", addresses, np.maximum(said, NO_ADDRESS), heard)
        foreign.words[foreign.root_slot] = 0
        _same_memory(ram_fd, ours, foreign.memory)
    with processor(ram_fd, ram_bytes, cr3) as foreign:
        _run_programs(foreign, addresses, said)
    walker = Walker(ram_fd, ram_bytes, cr3)
    found = _table((walker.translate(vaddr) for vaddr in addresses), 1)
    for column in range(len(ACCESSES)):
        said_present = (said[:, column] >= 0) | (~said[:, column] & PF_PROT != 0)
        _agree("the walker, presence", addresses, said_present[:, None], found >= 0)
        reached = said[:, column, None] >= 0
        _agree("the walker", addresses, np.where(reached, said[:, column, None], 0), np.where(reached, found, 0))
    words.release()
    return said


def _table(values: Iterable[int], columns: int) -> Verdicts:
    return np.fromiter(values, dtype=np.int64).reshape(-1, columns)


def _agree(who: str, addresses: Sequence[int], ours: npt.NDArray[np.generic], theirs: npt.NDArray[np.generic]) -> None:
    rows = np.flatnonzero((ours != theirs).any(axis=1))
    assert not len(rows), (
        f"{who} differs at {len(rows)} of {len(addresses)} addresses, first at {addresses[rows[0]]:#x}: "
        f"ours {ours[rows[0]].tolist()}, theirs {theirs[rows[0]].tolist()}"
    )


def _same_memory(ram_fd: int, ours: mmap.mmap, theirs: mmap.mmap) -> None:
    """What both have left in memory is the same: accessed and dirty bits alone have changed."""
    for start, end in _extents(ram_fd):
        if ours[start:end] != theirs[start:end]:
            mine, other = (np.frombuffer(copy[start:end], dtype=np.uint64) for copy in (ours, theirs))
            words = np.flatnonzero(mine != other)
            raise AssertionError(
                f"{len(words)} entries differ, first at {start + int(words[0]) * 8:#x}: "
                f"ours {mine[words[0]]:#x}, theirs {other[words[0]]:#x}"
            )


def _extents(fd: int) -> Iterator[tuple[int, int]]:
    """Yield where a sparse file holds anything: page tables are in there, untouched memory need not be made."""
    end, size = 0, os.fstat(fd).st_size
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError:
            return
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end


def _run_programs(foreign: Processor, addresses: Sequence[int], said: Verdicts) -> None:
    """Let instructions in user mode do some of the accesses: the bytes move to and from the frames that we name."""
    some = random.Random(5).sample(range(len(addresses)), min(NR_RUN, len(addresses)))
    for row in some:
        paddr = said[row, 0]
        expected = foreign.memory[paddr] if paddr >= 0 else None
        assert foreign.load(addresses[row]) == expected, f"load at {addresses[row]:#x}"
    for row in some:
        paddr = said[row, 1]
        value = (foreign.memory[paddr] + 1 & 0xFF) if paddr >= 0 else 0
        assert foreign.store(addresses[row], value) == (paddr >= 0), f"store at {addresses[row]:#x}"
        assert paddr < 0 or foreign.memory[paddr] == value, f"the byte stored at {addresses[row]:#x}"
    for row in some:
        vaddr, paddr = addresses[row] & PAGE_MASK, said[row, 2]
        target = int(paddr) & PAGE_MASK if paddr >= 0 else None
        assert foreign.execute(vaddr, target) == (paddr >= 0), f"fetch at {vaddr:#x}"
