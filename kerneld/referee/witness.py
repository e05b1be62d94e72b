"""The decision about a known difference: a tiny program runs only on the host, and its result decides.

A release number cannot decide: stable kernels have later changes, and distributions have their own. `Stage` plays a
program on one side. A witness is a function that plays a program and returns whether the side has the difference. On
kerneld with its own rules every witness returns False; with the rules of its difference it returns True.
`tests/differential/test_known.py` checks that. Knows neither kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

from kerneld.referee.outcome import Mapping, State, View
from kerneld.referee.program import Op, Program
from shared.uapi.page import PAGE_SIZE


class Played(tuple[State, ...]):
    """The states after each operation of a program."""

    __slots__ = ()

    @property
    def rets(self) -> list[int]:
        """The results."""
        return [state.outcome.ret for state in self]

    @property
    def view(self) -> View:
        """The memory of the first process at the end of the program."""
        return self[-1].views[0]

    def mappings(self, start: int, nr_pages: int) -> tuple[Mapping, ...]:
        """Return the mappings in a range at the end."""
        end = start + nr_pages * PAGE_SIZE
        return tuple(each for each in self.view.mappings if each.start < end and start < each.end)


class Stage:
    """One side, for witnesses."""

    def __init__(self, play: Callable[[Program], Iterator[State]]) -> None:
        """`play` yields the state after each operation of a program."""
        self._play = play

    def play(self, *program: Op) -> Played:
        """Run a program and return the states after its operations."""
        return Played(self._play(program))


Witness: TypeAlias = Callable[[Stage], bool]
