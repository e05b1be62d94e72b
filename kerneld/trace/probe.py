"""The list of probes: which function of the kernel is wrapped by what, for which events.

A probe file (`kerneld.trace.probes`) puts its own in with the decorator below: a factory that gets the tracing and the
function and returns what stands in its place. A probe without events keeps track of who runs and why; it is there
whenever anything is traced.
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
    """One wrapper, and the events that it is for; none: whatever is traced."""

    function: Function
    factory: Factory
    events: frozenset[int]


PROBES: list[Probe] = []


def probe(function: Function, *events: Event) -> Callable[[Factory], Factory]:
    """Return a decorator that puts a factory into PROBES, for one function and these events."""

    def note(factory: Factory) -> Factory:
        PROBES.append(Probe(function, factory, frozenset(event.number for event in events)))
        return factory

    return note
