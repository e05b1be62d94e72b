"""A known difference: its form, the decision whether the host has it, and how kerneld follows it.

`kerneld.referee.known` has the list. A rule replaces a function or a value of kerneld by name while the referee runs,
and is removed afterwards.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from kerneld.referee.facts import HostFacts
from kerneld.referee.mode import Mode
from kerneld.referee.witness import Stage, Witness


class OnTop(NamedTuple):
    """A rule that is made from the current rule: kerneld's own, or the rule of an earlier entry."""

    make: Callable[[Any], Any]


class Here(NamedTuple):
    """A rule for only the named module. Other modules with the same name keep their own."""

    rule: Any


class Known(NamedTuple):
    """One difference."""

    since: tuple[int, int]
    """The release that brought it; (0, 0) for a difference of configuration. It is for people, and decides only without
    a witness."""
    source: str
    """The commit that brought it, or the changed function. For a difference of configuration, what it depends on."""
    what: str
    rules: tuple[tuple[Any, str, Any], ...] = ()
    """The replacements: a module of kerneld, a name in it, the other rule."""
    applies: Callable[[HostFacts], bool] = lambda _: True
    """Whether the host's configuration has it. This is checked before the witness."""
    witness: Witness | None = None
    """Plays a program on the host and returns whether the host has the difference. Without a witness the release
    decides."""
    before: tuple[int, int] | None = None
    """For a rule of kernels before v6.8: the first release with v6.8's rule."""
    mode: Mode | None = None
    """The only mode in which it is visible and followed; None for every mode."""


_decided: dict[HostFacts, tuple[Known, ...]] = {}


def decide(differences: Iterable[Known], stage: Stage, facts: HostFacts) -> tuple[Known, ...]:
    """Return the differences that the host has, by their witnesses. Each witness is played once for each mode.

    `stage` is the host's side, before any program runs on it.
    """
    if facts not in _decided:
        release = version_of(facts.release)
        here = [known for known in differences if known.mode in (None, facts.mode) and known.applies(facts)]
        _decided[facts] = tuple(known for known in here if _has(known, stage, release))
    return _decided[facts]


def _has(known: Known, stage: Stage, release: tuple[int, int]) -> bool:
    if known.witness is not None:
        return known.witness(stage)
    return known.since <= release and (known.before is None or release < known.before)


def version_of(release: str) -> tuple[int, int]:
    """Return the version in a kernel's release, for differences without a witness."""
    match = re.match(r"(\d+)\.(\d+)", release)
    return (int(match[1]), int(match[2])) if match else (0, 0)


@contextlib.contextmanager
def following(differences: Iterable[Known]) -> Iterator[None]:
    """Let kerneld follow the rules of differences."""
    with replaced(rule for known in differences for rule in known.rules):
        yield


@contextlib.contextmanager
def replaced(rules: Iterable[tuple[Any, str, Any]]) -> Iterator[None]:
    """Replace functions and values of kerneld, in all modules that have the replaced name."""
    undo: list[tuple[Any, str, Any]] = []
    modules = [
        module
        for name, module in sys.modules.items()
        if name.startswith("kerneld.") and not name.startswith(f"{__package__}.") and module is not None
    ]
    try:
        for owner, name, rule in rules:
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
