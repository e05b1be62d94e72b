"""A known difference: its form, who decides whether the host has it, and how kerneld follows it.

The list is `kerneld.referee.known`. A rule replaces a function or a value of kerneld by name while the referee runs,
and is gone behind it.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from kerneld.referee.mode import Mode
from kerneld.referee.witness import Stage, Witness


class OnTop(NamedTuple):
    """A rule that is made of the one which is there when it comes: kerneld's own, or that of an entry before."""

    make: Callable[[Any], Any]


class Here(NamedTuple):
    """A rule for the one module that is named: others that have the same by name keep it."""

    rule: Any


class Known(NamedTuple):
    """One difference."""

    since: tuple[int, int]
    """The release that brought it; (0, 0) for one of configuration. For people: it decides nothing where there is a
    witness."""
    source: str
    """The commit that brought it, or the function that it changed; of one of configuration, what it depends on."""
    what: str
    rules: tuple[tuple[Any, str, Any], ...] = ()
    """What replaces what: a module of kerneld, a name in it, the other rule."""
    applies: Callable[[], bool] = lambda: True
    """Whether the host is built so; asked before the witness."""
    witness: Witness | None = None
    """Plays a program on the host and tells whether it has the difference; without one its release decides."""
    before: tuple[int, int] | None = None
    """Of a rule that steps back from v6.8: the release that first had v6.8's."""
    mode: Mode | None = None
    """The one mode that shows it, and in which it is followed; None for every mode."""


_decided: dict[Mode, tuple[Known, ...]] = {}


def decide(differences: Iterable[Known], stage: Stage, mode: Mode = Mode.PLAIN) -> tuple[Known, ...]:
    """Return those that the host has, as their witnesses say: played once a process for each mode.

    `stage` is the host's, before any program is run on it.
    """
    if mode not in _decided:
        release = host_release()
        here = [known for known in differences if known.mode in (None, mode) and known.applies()]
        _decided[mode] = tuple(known for known in here if _has(known, stage, release))
    return _decided[mode]


def _has(known: Known, stage: Stage, release: tuple[int, int]) -> bool:
    if known.witness is not None:
        return known.witness(stage)
    return known.since <= release and (known.before is None or release < known.before)


def host_release() -> tuple[int, int]:
    """Return the host kernel's version, for differences without a witness."""
    match = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return (int(match[1]), int(match[2])) if match else (0, 0)


@contextlib.contextmanager
def following(differences: Iterable[Known]) -> Iterator[None]:
    """Let kerneld follow the rules of differences, wherever a module of kerneld has its own by name."""
    undo: list[tuple[Any, str, Any]] = []
    modules = [
        module
        for name, module in sys.modules.items()
        if name.startswith("kerneld.") and not name.startswith(f"{__package__}.") and module is not None
    ]
    try:
        for owner, name, rule in (each for known in differences for each in known.rules):
            earlier = getattr(owner, name)
            new = rule.make(earlier) if isinstance(rule, OnTop) else rule.rule if isinstance(rule, Here) else rule
            places = [module for module in modules if module.__dict__.get(name) is earlier and module is not owner]
            for place in [owner] if isinstance(rule, Here) else [owner, *places]:
                undo.append((place, name, earlier))
                setattr(place, name, new)
        yield
    finally:
        for module, name, earlier in reversed(undo):
            setattr(module, name, earlier)
