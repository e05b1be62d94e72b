"""What a case of `tests.hostile.waits` is: a call, in a world."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from shared.client import Process
from tests.hostile.waits_worlds import Scale, World

Make = Callable[[Process, Scale], World]
Do = Callable[[Process, World], object]


class Case(NamedTuple):
    """One call in one world."""

    call: str
    make: Make
    do: Do
    nr_processes: int = 1
    """How many make the call at once, each in such a world of its own."""

    @property
    def name(self) -> str:
        """What the table calls it."""
        together = f", {self.nr_processes} at once" if self.nr_processes > 1 else ""
        return f"{self.call} / {self.make.__name__}{together}"
