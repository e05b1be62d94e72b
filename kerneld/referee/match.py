"""Runs one program on both sides, up to the first difference.

Owns the two sides for a run of many programs.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from kerneld.errors import KernelBug
from kerneld.referee.compare import Difference, find_difference, is_of_accessed_bits
from kerneld.referee.difference import Known, decide, following
from kerneld.referee.execute import Execution
from kerneld.referee.host import Host
from kerneld.referee.host_swap import host_swap
from kerneld.referee.host_view import has_damon, has_lru_gen, is_watched
from kerneld.referee.keeper import keeper
from kerneld.referee.known import KNOWN
from kerneld.referee.mode import Mode
from kerneld.referee.outcome import Outcome, State
from kerneld.referee.program import Op, Program
from kerneld.referee.rights import sees_frames
from kerneld.referee.simulated import Simulated
from kerneld.referee.swap_lock import host_has_swap, shared_swap
from kerneld.referee.witness import Stage
from shared.uapi.mman import Madv


class Divergence(NamedTuple):
    """The first difference between the two sides."""

    step: int
    """The number of the operation, from 0."""
    difference: Difference
    ours: State
    hosts: State

    def kind(self, program: Program) -> tuple[str, str]:
        """Return what two divergences with the same cause have in common: the call, and the subject without its
        place."""
        return program[self.step].name, self.difference[0].split(" at ")[0].split(" of ")[0].split(" page")[0]


class Match:
    """Both sides, for one program after another."""

    def __init__(self, ours: Simulated, hosts: Host, mode: Mode, known: tuple[Known, ...]) -> None:
        """`known` are the differences that the host has."""
        self.ours = ours
        self.hosts = hosts
        self.mode = mode
        self.known = known
        self._pages_out = mode is Mode.SWAP or not host_has_swap()
        """Whether programs may use MADV_PAGEOUT. Not if the host has swap and kerneld has none: the host would swap."""
        self._accessed = not has_lru_gen()

    def play(self, program: Program) -> Divergence | None:
        """Run a program on both sides. Return the first difference, or None.

        If only accessed bits differ, and the host clears them at random times (`host_view.has_damon`), there are two
        cases. If a page is marked as idle, accessed bits are not compared in the rest of the program. If not, the
        difference counts only if a second run has it again.
        """
        divergence = self._play_once(program, accessed=self._accessed)
        if divergence is None or not is_of_accessed_bits(divergence.difference) or not has_damon():
            return divergence
        again = self._play_once(program, accessed=True)
        if again is not None and (again.step, again.difference) == (divergence.step, divergence.difference):
            return divergence
        return self._play_once(program, accessed=False)

    def _play_once(self, program: Program, *, accessed: bool) -> Divergence | None:
        files = {op.file for op in program if op.file >= 0}
        self.hosts.prepare_files(files)
        self.ours.prepare_files(files)
        self.ours.start()
        self.hosts.start()
        try:
            return self._play(program, accessed)
        finally:
            self.hosts.end()
            self.ours.end()

    def describe(self) -> str:
        """Return a line that names the referee and what is compared."""
        frames = "frames are compared" if sees_frames() else "frames are not compared: only root sees them"
        count = len(self.known)
        pageout = "" if self._pages_out else "; MADV_PAGEOUT is passed over, for this host has swap of its own"
        accessed = "" if self._accessed else "; Referenced is not compared, for this host's lists of pages are others"
        return (
            f"The referee is Linux {os.uname().release}, mode {self.mode}; {frames}; {count} known differences apply"
            f"{pageout}{accessed}."
        )

    def _play(self, program: Program, accessed: bool) -> Divergence | None:
        layout = self.hosts.layout
        mine, theirs = (
            Execution(side, layout, self.mode, pages_out=self._pages_out) for side in (self.ours, self.hosts)
        )
        before: tuple[State, State] | None = None
        locked = batched = refaults = False
        for step, op in enumerate(program):
            try:
                ours = mine.run(op)
            except KernelBug as bug:
                none = State(Outcome(0), {})
                return Divergence(step, ("an invariant", str(bug), "holds"), none, none)
            states = ours, theirs.run(op)
            # Open (docs/fidelity.md): without swap, Linux marks pages of huge pages that reclaim keeps in another way.
            accessed = accessed and not (self.mode is Mode.HUGE and _pages_out(op))
            locked = locked or any(
                "lo" in mapping.flags for view in states[1].views.values() for mapping in view.mappings
            )
            batched = batched or _is_batched(op)
            refaults = refaults or _pages_out(op)
            compare = functools.partial(
                find_difference,
                op.name,
                *states,
                before,
                locked=locked or batched,
                huge=self.mode is Mode.HUGE,
                locked_huge=locked and self.mode is Mode.HUGE,
                refaults=refaults,
            )
            difference = compare(accessed=accessed)
            if difference is not None and accessed and is_of_accessed_bits(difference) and is_watched(states[1].views):
                accessed = False
                difference = compare(accessed=False)
            if difference is not None:
                return Divergence(step, difference, *states)
            before = states
        return None


def _pages_out(op: Op) -> bool:
    return op.name in _ADVICE_AT and op.args[_ADVICE_AT[op.name]] == Madv.PAGEOUT


def _is_batched(op: Op) -> bool:
    """Return whether an operation leaves pages in a processor's batches, as locking does.

    Source: Linux v6.8 mm/swap.c:folio_mark_lazyfree(), folio_deactivate(); for accesses by another process, and for a
    second access after populate, mm/gup.c:follow_page_pte() (FOLL_TOUCH), mm/swap.c:folio_activate().
    """
    position = _ADVICE_AT.get(op.name)
    if position is None:
        return op.name in ("process_vm_readv", "process_vm_writev")
    return op.args[position] in (Madv.FREE, Madv.COLD)


_ADVICE_AT = {"madvise": 2, "process_madvise": 3}
"""The index of the argument `advice`, by call."""


@contextlib.contextmanager
def open_match(mode: Mode = Mode.PLAIN, *, check_invariants: bool = False) -> Iterator[Match]:
    """Start both sides. Raises HostError if this host cannot be the referee, or not in this mode."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory(prefix="kerneld-referee-"))
        stack.enter_context(_on_one_cpu())
        if mode is Mode.SWAP:
            stack.enter_context(host_swap(Path(folder)))
        else:
            stack.enter_context(shared_swap())
        folders = [Path(folder, name) for name in ("host", "kerneld")]
        for each in folders:
            each.mkdir()
        if mode is Mode.HUGE:
            stack.enter_context(keeper("khugepaged"))
        host = Host(folders[0], mode)
        try:
            ours = Simulated(folders[1], host.layout, mode, check_invariants=check_invariants)
            try:
                known = decide(KNOWN, Stage(host, host.layout), mode)
                with following(known):
                    yield Match(ours, host, mode, known)
            finally:
                ours.close()
        finally:
            host.close()


@contextlib.contextmanager
def _on_one_cpu() -> Iterator[None]:
    """Keep both sides on one processor: a page in the batch of another processor would count one more owner."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {sorted(allowed)[os.getpid() % len(allowed)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)
