"""Rounds, and what is made of them: ours and the yardstick in turn, so that whatever disturbs one disturbs the other.

Owns the statistics: a row's ratio is the median of its rounds' ratios, its spread the quartiles of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median, quantiles


@dataclass(frozen=True, slots=True)
class Mark:
    """What a row is to reach: a ratio at most, or at least, `bound`."""

    bound: float
    at_least: bool = False

    def holds(self, value: float) -> bool:
        """Tell whether a value reaches the mark."""
        return value >= self.bound if self.at_least else value <= self.bound

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.bound:g}"


@dataclass(slots=True)
class Row:
    """One line of the table: what was measured, beside what, on which processors, and the rounds."""

    number: int
    measured: str
    yardstick: str
    placement: str
    unit: str
    mark: Mark | None
    """None for a row that is shown for comparison only."""
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)
    """Empty for a row without a yardstick: the value itself is compared with the mark."""
    inverse: bool = False
    """The ratio is yardstick over ours: so many times faster."""

    @property
    def ratios(self) -> list[float]:
        """The ratio of each round, or the values themselves where there is no yardstick."""
        if not self.theirs:
            return self.ours
        pairs = zip(self.ours, self.theirs, strict=True)
        return [theirs / ours if self.inverse else ours / theirs for ours, theirs in pairs]

    @property
    def ratio(self) -> float:
        """The median ratio."""
        return median(self.ratios)

    @property
    def spread(self) -> tuple[float, float]:
        """The first and the third quartile of the ratios."""
        ratios = self.ratios
        if len(ratios) < 2:
            return ratios[0], ratios[0]
        first, _, third = quantiles(ratios, n=4, method="inclusive")
        return first, third

    @property
    def reached(self) -> bool | None:
        """Whether the median reaches the mark; None where there is none."""
        return None if self.mark is None else self.mark.holds(self.ratio)


def interleave(row: Row, rounds: int, ours: Callable[[], float], theirs: Callable[[], float]) -> Row:
    """Measure both in turn, the order changing from round to round; one round before the first warms both up."""
    for number in range(rounds + 1):
        if number % 2:
            mine, other = ours(), theirs()
        else:
            other, mine = theirs(), ours()
        if number:
            row.ours.append(mine)
            row.theirs.append(other)
    return row
