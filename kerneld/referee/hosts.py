"""The host that the referee asks: this machine's kernel, or another machine's (`remote`).

Owns what they have in common, and all that this machine needs to be a host: its directory, its processor, its mode.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from kerneld.referee.execute import play
from kerneld.referee.facts import HostFacts, find_facts
from kerneld.referee.host import Host
from kerneld.referee.host_swap import host_swap
from kerneld.referee.host_view import Reading
from kerneld.referee.keeper import keeper
from kerneld.referee.mode import Mode
from kerneld.referee.outcome import State, StateOf
from kerneld.referee.program import Program
from kerneld.referee.swap_lock import shared_swap


class PlayingHost(Protocol):
    """A host on which programs can be played, one after another."""

    @property
    def facts(self) -> HostFacts: ...

    def play(self, program: Program, *, pages_out: bool = True, everything: bool = True) -> Generator[State]:
        """Yield the state after each operation. Without `pages_out` MADV_PAGEOUT is skipped.

        `everything`: see `kerneld.referee.execute.play`.
        """
        ...

    def expect(self, program: Program, *, pages_out: bool = True, everything: bool = True) -> None:
        """Say that this program is played after those that were expected before: a host may begin early."""
        ...


def parse_state(state: StateOf[Reading], start_totals: dict[str, int], facts: HostFacts) -> State:
    """Return a state with the memory of each process parsed. `start_totals` are those when the program began."""
    uncounted = frozenset(facts.uncounted)
    views = {who: reading.view(start_totals, uncounted) for who, reading in state.views.items()}
    counters = {name: count for name, count in state.counters.items() if name not in uncounted}
    return StateOf(state.outcome, views, counters)


class ThisHost:
    """This machine's kernel."""

    def __init__(self, host: Host, facts: HostFacts) -> None:
        self.facts = facts
        self._host = host

    @property
    def start_totals(self) -> dict[str, int]:
        """The totals of a program's first process when the last program began."""
        return self._host.start_totals

    def play(self, program: Program, *, pages_out: bool = True, everything: bool = True) -> Generator[State]:
        """Yield the state after each operation, as soon as it is there."""
        unparsed = self.play_unparsed(program, pages_out=pages_out, everything=everything)
        with contextlib.closing(unparsed) as states:
            for state in states:
                yield parse_state(state, self.start_totals, self.facts)

    def play_unparsed(self, program: Program, *, pages_out: bool, everything: bool) -> Generator[StateOf[Reading]]:
        """Yield what was read after each operation, as soon as it is there."""
        facts = self.facts
        choice = {"pages_out": pages_out, "counts": facts.counts, "everything": everything}
        yield from play(self._host, facts.layout, program, facts.mode, **choice)

    def expect(self, program: Program, *, pages_out: bool = True, everything: bool = True) -> None:
        """Do nothing: this machine is busy with both sides."""


@contextlib.contextmanager
def open_this_host(mode: Mode, *, counts: bool = False) -> Iterator[ThisHost]:
    """Start the runner. With `counts` the counters of the whole machine are read.

    Raises HostError if this machine cannot be the referee, or not in this mode.
    """
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory(prefix="kerneld-referee-"))
        stack.enter_context(_on_one_cpu())
        if mode is Mode.SWAP:
            stack.enter_context(host_swap(Path(folder)))
        else:
            stack.enter_context(shared_swap())
        files = Path(folder, "host")
        files.mkdir()
        if mode is Mode.HUGE:
            stack.enter_context(keeper("khugepaged"))
        host = Host(files, mode, counts=counts)
        stack.callback(host.close)
        yield ThisHost(host, find_facts(mode, host.layout, host.uncounted, counts=counts))


@contextlib.contextmanager
def _on_one_cpu() -> Iterator[None]:
    """Keep this process on one processor: a page in the batch of another processor would count one more owner."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {sorted(allowed)[os.getpid() % len(allowed)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)
