"""The random programs of each mode."""

from __future__ import annotations

import random

from kerneld.referee.generate import generate
from kerneld.referee.huge import HugeGenerator
from kerneld.referee.many import ManyGenerator
from kerneld.referee.mode import Mode
from kerneld.referee.program import Program
from kerneld.referee.swap import SwapGenerator

_GENERATORS: dict[Mode, type[HugeGenerator | SwapGenerator | ManyGenerator]] = {
    Mode.HUGE: HugeGenerator,
    Mode.SWAP: SwapGenerator,
    Mode.MANY: ManyGenerator,
}
_OTHER_SHARE = 0.2
"""The share of plain programs in another mode: their results must be the same with huge pages, or with swap."""


def make_program(mode: Mode, seed: str, nr_ops: int) -> Program:
    """Return the program of a seed in a mode: the same in every run and on every machine."""
    if mode is Mode.PLAIN or (mode is not Mode.MANY and random.Random(f"{seed} {mode}").random() < _OTHER_SHARE):
        return generate(seed, nr_ops)
    return _GENERATORS[mode](random.Random(seed)).program(nr_ops)
