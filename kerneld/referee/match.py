"""Runs one program on both sides, up to the first difference.

Owns the two sides for a run of many programs.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from kerneld.errors import KernelBug
from kerneld.referee import segments, userfaultfds
from kerneld.referee.compare import (
    Difference,
    find_difference,
    is_of_accessed_bits,
    may_be_of_migration,
    may_be_of_writeback,
)
from kerneld.referee.difference import Known, decide, following
from kerneld.referee.execute import play
from kerneld.referee.facts import HostFacts
from kerneld.referee.host_view import has_idle_pages
from kerneld.referee.hosts import PlayingHost, open_this_host
from kerneld.referee.inside import open_inside
from kerneld.referee.known import KNOWN
from kerneld.referee.machine import OF_THE_MACHINE
from kerneld.referee.mode import Mode
from kerneld.referee.outcome import Outcome, State, StateOf
from kerneld.referee.program import FILES, MAX_PROCESSES, Op, Program
from kerneld.referee.remote import open_remote_host
from kerneld.referee.simulated import Simulated
from kerneld.referee.small_sizes import small_sizes
from kerneld.referee.witness import Stage
from shared.uapi.mman import Madv, Map

_REPLAYS = 3


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

    def __init__(self, ours: Simulated, hosts: PlayingHost, known: tuple[Known, ...]) -> None:
        """`known` are the differences that the host has."""
        self.ours = ours
        self.hosts = hosts
        self.mode = hosts.facts.mode
        self.known = known
        self._pages_out = not hosts.facts.has_swap
        """Whether programs may use MADV_PAGEOUT. Not if the host has swap and kerneld has none: the host would swap."""
        self._unseen = _why_not_accessed(hosts.facts)
        """Why accessed bits are not compared; empty if they are."""
        self._accessed = not self._unseen

    def expect(self, program: Program) -> None:
        """Say which program is played after those that were expected before. Not every one needs to be expected."""
        self.hosts.expect(self._playable(program), pages_out=self._pages_out, everything=self._compares_everything)

    @property
    def _compares_everything(self) -> bool:
        """Whether everything is compared after each operation."""
        return self.mode is not Mode.MANY

    def _playable(self, program: Program) -> Program:
        """Return the program without what the host does at random moments.

        Without a namespace for System V shared memory, no process makes its calls: they are passed over. So are those
        of userfaultfd, on a host without it.
        If it really merges equal pages, the operations that make memory mergeable get a process that never exists, and
        are passed over. If its file system has a journal, ftruncate also writes the page that it fills up with zeros:
        the journal would write it at its next commit, which may come at once. Source: Linux v6.8
        fs/ext4/inode.c:__ext4_block_zero_page_range(), fs/ext4/super.c:ext4_journal_submit_inode_data_buffers().
        """
        if self.hosts.facts.runs_ksm:
            program = tuple(op._replace(who=MAX_PROCESSES) if _makes_mergeable(op) else op for op in program)
        if not self.hosts.facts.has_own_ipc:
            program = tuple(op._replace(who=MAX_PROCESSES) if op.name in segments.CALLS else op for op in program)
        if not self.hosts.facts.has_userfaultfd:
            program = tuple(op._replace(who=MAX_PROCESSES) if op.name in userfaultfds.CALLS else op for op in program)
        if self.hosts.facts.has_journal:
            program = tuple(op._replace(args=(op.args[0], 1)) if _cuts_on_disk(op) else op for op in program)
        return program

    def play(self, program: Program, *, small: bool = False) -> Divergence | None:
        """Run a program on both sides. Return the first difference, or None.

        With `small` kerneld's inner structures have small sizes: see `kerneld.referee.small_sizes`.
        """
        with small_sizes() if small else contextlib.nullcontext():
            return self._play(program)

    def _play(self, program: Program) -> Divergence | None:
        """Run a program, perhaps several times.

        With hundreds of mappings only a part is compared after most operations. After a difference a second run
        compares everything after each one, and finds where it began.

        If only accessed bits differ, and the host clears them at random times (DAMON), there are two
        cases. If a page is marked as idle, accessed bits are not compared in the rest of the program. If not, the
        difference counts only if a second run has it again. A difference in a counter of the machine does so too. One
        that the writeback of a regular file may have made (others may call sync(2), and a host that is short of memory
        writes all the time), or that the host has made by moving a page, counts only if it comes each time.
        """
        divergence = self._play_once(program, accessed=self._accessed, everything=self._compares_everything)
        if divergence is not None and not self._compares_everything:
            divergence = self._play_once(program, accessed=self._accessed) or divergence
        if divergence is not None and divergence.difference[0].endswith(OF_THE_MACHINE):
            again = self._play_once(program, accessed=self._accessed)
            is_same = again is not None and (again.step, again.difference) == (divergence.step, divergence.difference)
            return divergence if is_same else None
        if divergence is not None and _has_disk_file(program) and may_be_of_writeback(divergence.difference):
            return self._play_always(program, divergence, may_be_of_writeback)
        if divergence is not None and may_be_of_migration(divergence.difference):
            return self._play_always(program, divergence, may_be_of_migration)
        if divergence is None or not is_of_accessed_bits(divergence.difference):
            return divergence
        if not self.hosts.facts.has_damon:
            return divergence
        again = self._play_once(program, accessed=True)
        if again is not None and (again.step, again.difference) == (divergence.step, divergence.difference):
            return divergence
        return self._play_once(program, accessed=False)

    def _play_always(
        self, program: Program, divergence: Divergence, may_be_the_hosts: Callable[[Difference], bool]
    ) -> Divergence | None:
        """Return a divergence that the host may have made by itself, if it comes in all of several runs.

        Another divergence is returned if the host cannot have made it by itself.
        """
        for _ in range(_REPLAYS):
            again = self._play_once(program, accessed=self._accessed)
            if again is None:
                return None
            if (again.step, again.difference) != (divergence.step, divergence.difference):
                return None if may_be_the_hosts(again.difference) else again
        return divergence

    def _play_once(self, program: Program, *, accessed: bool, everything: bool = True) -> Divergence | None:
        facts, program = self.hosts.facts, self._playable(program)
        choice = {"pages_out": self._pages_out, "everything": everything}
        mine = play(self.ours, facts.layout, program, self.mode, counts=facts.counts, **choice)
        with contextlib.closing(self.hosts.play(program, **choice)) as hosts, contextlib.closing(mine) as ours:
            return self._compare(program, ours, hosts, accessed)

    def describe(self) -> str:
        """Return a line that names the referee and what is compared."""
        facts = self.hosts.facts
        frames = "frames are compared" if facts.sees_frames else "frames are not compared: only root sees them"
        release, count = facts.release, len(self.known)
        pageout = "" if self._pages_out else "; MADV_PAGEOUT is passed over, for this host has swap of its own"
        ksm = "; MADV_MERGEABLE is passed over, for this host merges equal pages" if facts.runs_ksm else ""
        accessed = f"; Referenced is not compared, for {self._unseen}" if self._unseen else ""
        counts = "; the counters of the whole machine are compared" if facts.counts else ""
        journal = "; a page that ftruncate cuts is written at once, for the journal would" if facts.has_journal else ""
        shm = "" if facts.has_own_ipc else "; System V shared memory is passed over: only root has a namespace for it"
        watches = "" if facts.has_userfaultfd else "; userfaultfd is passed over: this host lets nobody use it here"
        return (
            f"The referee is Linux {release}, mode {self.mode}; {frames}; {count} known differences apply"
            f"{pageout}{ksm}{shm}{watches}{accessed}{journal}{counts}."
        )

    def _compare(
        self, program: Program, mine: Iterator[State], theirs: Iterator[State], accessed: bool
    ) -> Divergence | None:
        before: tuple[State, State] | None = None
        locked = batched = refaults = False
        for step, op in enumerate(program):
            try:
                ours = next(mine)
            except KernelBug as bug:
                none: State = StateOf(Outcome(0), {})
                return Divergence(step, ("an invariant", str(bug), "holds"), none, none)
            states = ours, next(theirs)
            locked = locked or any(
                "lo" in mapping.flags for view in states[1].views.values() for mapping in view.mappings
            )
            # A part of a state has no flags of mappings.
            locked = locked or (not self._compares_everything and _may_lock(op))
            batched = batched or _is_batched(op)
            refaults = refaults or _pages_out(op)
            compare = functools.partial(
                find_difference,
                op.name,
                *states,
                before,
                locked=locked or batched,
                huge=self.mode is Mode.HUGE,
                refaults=refaults,
            )
            difference = compare(accessed=accessed)
            if difference is not None and accessed and is_of_accessed_bits(difference) and self._is_watched(states[1]):
                accessed = False
                difference = compare(accessed=False)
            if difference is not None:
                return Divergence(step, difference, *states)
            before = states
        return None

    def _is_watched(self, state: State) -> bool:
        """Return whether DAMON has cleared the accessed bit of a page in a state of the host."""
        return self.hosts.facts.has_damon and has_idle_pages(state.views)


def _why_not_accessed(facts: HostFacts) -> str:
    if facts.has_lru_gen:
        return "this host's lists of pages are others"
    if facts.has_damon and not facts.sees_frames:
        return "this host's DAMON clears accessed bits, and only root sees of which pages"
    return ""


def _pages_out(op: Op) -> bool:
    return op.name in _ADVICE_AT and op.args[_ADVICE_AT[op.name]] == Madv.PAGEOUT


def _cuts_on_disk(op: Op) -> bool:
    return op.name == "ftruncate" and FILES[op.file].inode == "regular"


def _has_disk_file(program: Program) -> bool:
    return any(op.file >= 0 and FILES[op.file].inode == "regular" for op in program)


def _makes_mergeable(op: Op) -> bool:
    return op.name == "prctl" or (op.name in _ADVICE_AT and op.args[_ADVICE_AT[op.name]] == Madv.MERGEABLE)


def _may_lock(op: Op) -> bool:
    if op.name == "mmap":
        flags = op.args[3]
        return isinstance(flags, int) and flags & Map.LOCKED != 0
    return op.name.startswith("mlock")


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
def open_match(
    mode: Mode = Mode.PLAIN,
    *,
    check_invariants: bool = False,
    host_command: str | None = None,
    inside: bool = False,
    counts: bool = False,
) -> Iterator[Match]:
    """Start both sides. The host is this machine, or that of a player which a command starts (`remote`).

    With `inside` it is a kerneld, and the runner one of its native programs. With `counts` the counters of the whole
    machine are compared: nothing else may run on the host.

    Raises HostError if the host cannot be the referee, or not in this mode.
    """
    with contextlib.ExitStack() as stack:
        host: PlayingHost
        if inside:
            host = stack.enter_context(open_inside(mode))
        elif host_command is None:
            host = stack.enter_context(open_this_host(mode, counts=counts))
        else:
            host = stack.enter_context(open_remote_host(host_command, mode, counts=counts))
        folder = stack.enter_context(TemporaryDirectory(prefix="kerneld-referee-"))
        ours = Simulated(Path(folder), host.facts, check_invariants=check_invariants)
        stack.callback(ours.close)
        known = decide(KNOWN, Stage(host.play), host.facts)
        stack.enter_context(following(known))
        yield Match(ours, host, known)
