"""Random programs on memory that has huge pages: one to three times 2 MiB, most of it on boundaries.

Owns the weights. The programs make huge pages (by a fault, by populate, by MADV_COLLAPSE), share them with children,
and make calls on parts of them. They also have shared memory and files as neighbours.
"""

from __future__ import annotations

from typing import ClassVar

from kerneld.referee.program import At, Op
from kerneld.referee.wide import WideGenerator
from shared.uapi.mman import Madv
from shared.uapi.page import PAGE_SIZE

_WEIGHTS = {
    "mapping": 8, "munmap": 6, "mprotect": 12, "mremap": 12, "madvise": 26, "mlock2": 3, "munlock": 4, "touch": 18,
    "store": 12, "load": 8, "fork": 7, "exit": 3, "process_vm": 4, "mincore": 2,
}  # fmt: skip
_ADVICE = (
    Madv.HUGEPAGE, Madv.HUGEPAGE, Madv.NOHUGEPAGE, Madv.COLLAPSE, Madv.COLLAPSE, Madv.DONTNEED, Madv.DONTNEED,
    Madv.FREE, Madv.FREE, Madv.COLD, Madv.COLD, Madv.PAGEOUT, Madv.POPULATE_READ, Madv.POPULATE_WRITE, Madv.WILLNEED,
    Madv.DONTFORK, Madv.WIPEONFORK, Madv.KEEPONFORK, Madv.SEQUENTIAL,
)  # fmt: skip


class HugeGenerator(WideGenerator):
    """The program of one state of `rng`."""

    weights: ClassVar[dict[str, int]] = _WEIGHTS
    advice: ClassVar[tuple[Madv, ...]] = _ADVICE
    tables: ClassVar[tuple[int, ...]] = (1, 1, 2, 2, 3)

    def _mapping(self) -> list[Op]:
        """Make a mapping. MADV_HUGEPAGE comes mostly before the first access, sometimes later or never."""
        made = super()._mapping()
        if self._rng.random() < 0.8:
            mmap = made[0]
            made.insert(1, Op(mmap.who, "madvise", (At(mmap.slot), mmap.args[1], Madv.HUGEPAGE.value)))
        return made

    def _load(self) -> list[Op]:
        return [Op(self._who(), "load", (self._range()[0], self._rng.choice((1, 8, 5000))))]

    def _mincore(self) -> list[Op]:
        return [Op(self._who(), "mincore", self._range())]

    def _process_vm(self) -> list[Op]:
        """Read or write the memory of another process or of the caller: pages are pinned for this."""
        rng = self._rng
        name = rng.choice(("process_vm_readv", "process_vm_writev"))
        lengths = [rng.choice((8, PAGE_SIZE, 3 * PAGE_SIZE)) for _ in range(2)]
        peer = rng.choice(self._processes)
        return [Op(self._who(), name, (peer, self._range()[0], lengths[0], self._range()[0], lengths[1], 0))]
