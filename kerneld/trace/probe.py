"""The list of probes: the wrapped functions of the kernel, their wrappers, and their events.

A probe file (`kerneld.trace.probes`) adds its probes with the decorator below. A probe is a factory: it gets the
tracing and the function, and returns the wrapper. A probe without events keeps track of the served process and the
causes; it is active while anything is traced.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from kerneld.trace.fprobe import Function

if TYPE_CHECKING:
    from kerneld.trace.tracing import Tracing
    from shared.trace.event import Event

Factory = Callable[["Tracing", Function], Function]


class Probe(NamedTuple):
    """One wrapper, and its events. Without events it is active for every trace."""

    function: Function
    factory: Factory
    events: frozenset[int]


PROBES: list[Probe] = []


def probe(function: Function, *events: Event) -> Callable[[Factory], Factory]:
    """Return a decorator that adds a factory to PROBES, for one function and these events."""

    def note(factory: Factory) -> Factory:
        PROBES.append(Probe(function, factory, frozenset(event.number for event in events)))
        return factory

    return note
