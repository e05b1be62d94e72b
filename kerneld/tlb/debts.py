"""What agents owe: orders that are not carried out yet, though the kernel goes on.

An agent that has a processor answers in microseconds, and the kernel waits for it. One that waits for a processor, or
is stopped, answers late. Then only those wait who have asked for what it is to do, and the threads of its program;
other clients are served. Until it has answered:
- the frames that the order takes away are lent (`kerneld.mm.frames.loans`): they go to nobody else;
- the address space is *unsettled*: requests of its threads are not served, as if another thread held mmap_lock;
- the answer to the request that made the order is kept back.

Owns the orders that are not carried out. Knows no socket. Answers to Linux v6.8 kernel/smp.c:
smp_call_function_many_cond(), where the processor that asks waits, and the others go on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from kerneld.mm.space.wait import Wait

if TYPE_CHECKING:
    from kerneld.mm.frames.frames import Frames, Pfns
    from kerneld.mm.space.mm import MmStruct
    from kerneld.tlb.view import Agent


class _Debt(NamedTuple):
    """One order that is not carried out."""

    number: int
    pfns: Pfns
    """The frames that the program may still reach until then."""
    mm: MmStruct | None
    """The address space that waits for it; None if it has ended."""


class Debts:
    """The orders of one machine that are not carried out."""

    def __init__(self, frames: Frames, unsettled: set[MmStruct]) -> None:
        """`unsettled` is kept up to date: the address spaces whose agents owe something."""
        self._frames = frames
        self._unsettled = unsettled
        self._of: dict[Agent, list[_Debt]] = {}
        self._waits: list[tuple[Wait, set[Agent]]] = []
        self.fresh: set[Agent] = set()
        """The agents that have come to owe something since `take_wait` by what a request has asked for."""
        self._is_asked_for = True

    def owe(self, agent: Agent, number: int, pfns: Pfns, mm: MmStruct | None) -> None:
        """Note an order; `pfns` are the frames that it takes away, in rising order and each once."""
        self._frames.lend(pfns)
        self._of.setdefault(agent, []).append(_Debt(number, pfns, mm))
        if mm is not None:
            self._unsettled.add(mm)
            if self._is_asked_for:
                self.fresh.add(agent)

    def unasked(self, reclaim: Callable[[int], None]) -> Callable[[int], None]:
        """Return direct reclaim as one that nobody waits for: who needs memory has not asked to take it from others."""

        def reclaiming(count: int) -> None:
            self._is_asked_for = False
            try:
                reclaim(count)
            finally:
                self._is_asked_for = True

        return reclaiming

    def take_wait(self) -> Wait:
        """Return a wait for the agents in `fresh`, which is empty then."""
        wait, agents = Wait(), self.fresh
        self.fresh = set()
        self._waits.append((wait, agents))
        self._end_waits()
        return wait

    def wait_for(self, mm: MmStruct) -> Wait:
        """Return a wait for the agent of an unsettled address space."""
        agents = {agent for agent, debts in self._of.items() if any(debt.mm is mm for debt in debts)}
        self._waits.append((wait := Wait(), agents))
        return wait

    def end_of(self, agent: Agent, mm: MmStruct) -> None:
        """Note that an address space has ended. Nobody waits for its agent any more; its frames stay lent."""
        self._unsettled.discard(mm)
        self.fresh.discard(agent)
        if agent in self._of:
            self._of[agent] = [debt._replace(mm=None) for debt in self._of[agent]]
        self._end_waits()

    def settle(self, agent: Agent) -> None:
        """Note what an agent has acknowledged."""
        debts = self._of.get(agent, [])
        left = [debt for debt in debts if debt.number > agent.acknowledged]
        for debt in debts:
            if debt.number <= agent.acknowledged:
                self._frames.give_back(debt.pfns)
                if debt.mm is not None and not left:
                    self._unsettled.discard(debt.mm)
        if left:
            self._of[agent] = left
        elif debts:
            del self._of[agent]
            self.fresh.discard(agent)
            self._end_waits()

    def _end_waits(self) -> None:
        over = [wait for wait, agents in self._waits if not any(map(self._is_waited_for, agents))]
        self._waits = [(wait, agents) for wait, agents in self._waits if wait not in over]
        for wait in over:
            wait.end()

    def _is_waited_for(self, agent: Agent) -> bool:
        return any(debt.mm is not None for debt in self._of.get(agent, []))

    def agents(self) -> list[Agent]:
        """Return the agents that owe something."""
        return list(self._of)
