"""The random programs of each mode. In half of them, processes also write to /proc/PID/clear_refs."""

from __future__ import annotations

import random

from kerneld.referee.generate import generate
from kerneld.referee.huge import HugeGenerator
from kerneld.referee.many import ManyGenerator
from kerneld.referee.mode import Mode
from kerneld.referee.program import MAX_PROCESSES, Op, Program
from kerneld.referee.swap import SwapGenerator

_GENERATORS: dict[Mode, type[HugeGenerator | SwapGenerator | ManyGenerator]] = {
    Mode.HUGE: HugeGenerator,
    Mode.SWAP: SwapGenerator,
    Mode.MANY: ManyGenerator,
}
_OTHER_SHARE = 0.2
"""The share of plain programs in another mode: their results must be the same with huge pages, or with swap."""


_CLEARING_SHARE = 0.5
_CLEARED = ("4",) * 12 + ("1", "2", "3", "4\n", " 4", "0", "6", "x")
"""What is written to clear_refs: mostly, that no page is soft-dirty."""

_AGAIN = frozenset({"load", "store", "touch", "mprotect"})


def make_program(mode: Mode, seed: str, nr_ops: int) -> Program:
    """Return the program of a seed in a mode: the same in every run and on every machine."""
    rng = random.Random(f"{seed} clear_refs")
    ops = list(_make_calls(mode, seed, nr_ops))
    if rng.random() < _CLEARING_SHARE:
        again = [op for op in ops if op.name in _AGAIN]
        for _ in range(rng.randint(1, 6)):
            at = rng.randint(1, len(ops))
            # Before the forks it is by process 0, mostly.
            who, peer = (rng.choice((0, 0, *range(MAX_PROCESSES))) for _ in range(2))
            op = Op(who, "clear_refs", (who if rng.random() < 0.7 else peer,), data=rng.choice(_CLEARED).encode())
            # What the program does elsewhere anyway meets what is there now.
            ops[at:at] = [op, *rng.choices(again, k=rng.randint(0, 3))] if again else [op]
    return tuple(ops)


def _make_calls(mode: Mode, seed: str, nr_ops: int) -> Program:
    if mode is Mode.PLAIN or (mode is not Mode.MANY and random.Random(f"{seed} {mode}").random() < _OTHER_SHARE):
        return generate(seed, nr_ops)
    return _GENERATORS[mode](random.Random(seed)).program(nr_ops)
