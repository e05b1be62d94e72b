"""How a known difference is decided: a tiny program that is played on the host alone, and what it shows.

A release number decides nothing: stable kernels carry later changes, distributions carry others. `Stage` plays a
program on one side; a witness is a function that has one played and tells whether the side has the difference. On
kerneld by its own rules each says no, and with the rules of its difference yes: `tests/differential/test_known.py`
plays them so. Knows neither kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

from kerneld.referee.execute import Execution, Side
from kerneld.referee.layout import Layout
from kerneld.referee.outcome import Mapping, State, View
from kerneld.referee.program import Op
from shared.uapi.page import PAGE_SIZE


class WholeSide(Side, Protocol):
    """A side that programs begin and end on."""

    def prepare_files(self, numbers: set[int]) -> None: ...
    def start(self) -> None: ...
    def end(self) -> None: ...


class Played(tuple[State, ...]):
    """What each operation of a program did, in turn."""

    __slots__ = ()

    @property
    def rets(self) -> list[int]:
        """The results."""
        return [state.outcome.ret for state in self]

    @property
    def view(self) -> View:
        """The memory of the first process at the end."""
        return self[-1].views[0]

    def mappings(self, start: int, nr_pages: int) -> tuple[Mapping, ...]:
        """Return the mappings in a range at the end."""
        end = start + nr_pages * PAGE_SIZE
        return tuple(each for each in self.view.mappings if each.start < end and start < each.end)


class Stage:
    """One side, for witnesses."""

    def __init__(self, side: WholeSide, layout: Layout) -> None:
        self._side = side
        self._layout = layout

    def play(self, *program: Op) -> Played:
        """Run a program and return what its operations did."""
        self._side.prepare_files({op.file for op in program if op.file >= 0})
        self._side.start()
        try:
            execution = Execution(self._side, self._layout)
            return Played([execution.run(op) for op in program])
        finally:
            self._side.end()


Witness: TypeAlias = Callable[[Stage], bool]
