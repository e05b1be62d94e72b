"""Functions of the kernel replaced by wrapping ones while somebody wants to know when they run, and put back after.

Owns which functions are replaced, and by what. Knows no event. Python binds a name in each module that imports it and
in each table that holds it: a function is replaced in all of them, a method in its class. Where several want the same
function their wrappers stand inside one another, the last to come outermost, and each can leave first.

A bound method that an object has kept (`self._poll = self._epoll.poll`) is out of reach: nothing hangs on such a one.

Invariant: a function with no wrapper is, in every place, the very object that it was.

To look through every module takes as long as to serve a thousand requests. So that is done once (`_Places`), and again
only where another module has come, or what stands somewhere is not what stood there then.
Answers to Linux v6.8 Documentation/trace/fprobe.rst and kernel/trace/fprobe.c.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FunctionType
from typing import Any, NamedTuple

Function = Callable[..., Any]
Wrap = Callable[[Function], Function]
"""Makes of a function one that does the same and tells of it."""
_KERNEL = "kerneld"


@dataclass(frozen=True, slots=True)
class _Attribute:
    """A name of a module or a class."""

    holder: Any
    name: str

    def held(self) -> Any:
        return vars(self.holder).get(self.name)

    def __call__(self, function: Function) -> None:
        setattr(self.holder, self.name, function)


@dataclass(frozen=True, slots=True)
class _Item:
    """An item of a table."""

    table: dict[Any, Any]
    key: Any

    def held(self) -> Any:
        return self.table.get(self.key)

    def __call__(self, function: Function) -> None:
        self.table[self.key] = function


_Place = _Attribute | _Item


class _Places:
    """Where each function of the kernel stands, as far as that is known."""

    def __init__(self) -> None:
        self._known: dict[int, list[_Place]] = {}
        """By the id of what stands there; nothing is believed of it that is not looked at again."""
        self._nr_modules = 0

    def find(self, function: Function) -> list[_Place]:
        """Return every place where a function stands now."""
        if len(sys.modules) != self._nr_modules:
            self._look()
        found = self._known.get(id(function), [])
        if not found or any(place.held() is not function for place in found):
            self._look()
            found = self._known.get(id(function), [])
        return found

    def moved(self, old: Function, new: Function, places: list[_Place]) -> None:
        """Another function stands there from now on."""
        self._known.pop(id(old), None)
        self._known[id(new)] = places

    def _look(self) -> None:
        self._nr_modules = len(sys.modules)
        self._known.clear()
        for place, held in _everything():
            self._known.setdefault(id(held), []).append(place)


class _Site:
    """One function that is wrapped."""

    def __init__(self, original: Function) -> None:
        self.original = original
        """What stood under its name before: something else than what was defined there, where others replace too."""
        self.current = original
        self.wraps: list[Wrap] = []

    def rebuild(self) -> Function:
        """Return the function with all its wrappers around it."""
        wrapped = self.original
        for wrap in self.wraps:
            wrapped = wrap(wrapped)
        return wrapped


class Fprobe(NamedTuple):
    """One wrapper in its place."""

    function: Function
    """As it was defined."""
    wrap: Wrap


class Fprobes:
    """What is replaced in this process."""

    def __init__(self) -> None:
        self._places = _Places()
        self._sites: dict[Function, _Site] = {}
        self._defined: dict[Function, Function] = {}
        """By what stands in its place."""

    def register(self, function: Function, wrap: Wrap) -> Fprobe:
        """Wrap a function of the kernel, given as it was defined or as it stands there now, wherever it has a name.

        Raises ValueError for what is no function of a module or a class of the kernel.
        """
        defined = self._defined.get(function, function)
        site = self._sites.get(defined) or _Site(_find_home(defined))
        places = self._places.find(site.current)
        if not places:
            raise ValueError(f"{defined!r} stands nowhere in the kernel")
        site.wraps.append(wrap)
        self._sites[defined] = site
        self._replace(defined, site, places)
        return Fprobe(defined, wrap)

    def unregister(self, probe: Fprobe) -> None:
        """Take one wrapper away."""
        site = self._sites[probe.function]
        site.wraps.remove(probe.wrap)
        self._replace(probe.function, site, self._places.find(site.current))
        if not site.wraps:
            del self._sites[probe.function]

    def defined(self, function: Any) -> Any:
        """Return the function as it was defined that another one stands in for; anything else as it is."""
        return self._defined.get(function, function) if isinstance(function, FunctionType) else function

    @property
    def functions(self) -> list[Function]:
        """The functions that are wrapped now, as they were defined."""
        return list(self._sites)

    def _replace(self, defined: Function, site: _Site, places: list[_Place]) -> None:
        wrapped = site.rebuild()
        for put in places:
            put(wrapped)
        self._places.moved(site.current, wrapped, places)
        self._defined.pop(site.current, None)
        site.current = wrapped
        if site.wraps:
            self._defined[wrapped] = defined


FPROBES = Fprobes()
"""The process has one kernel's code, so one register of what is replaced in it."""


def _find_home(function: Function) -> Function:
    """Return what stands now under the name that a function was defined with."""
    found: Any = sys.modules.get(function.__module__)
    for name in function.__qualname__.split("."):
        found = getattr(found, name, None)
    return found if callable(found) else function


def _everything() -> Iterator[tuple[_Place, Any]]:
    """Yield each place of the kernel's modules where something that can be called stands, and what."""
    # Lists: a module may be imported meanwhile by nobody, but the interpreter cannot know.
    for name, module in list(sys.modules.items()):
        if name != _KERNEL and not name.startswith(_KERNEL + "."):
            continue
        for key, value in list(vars(module).items()):
            if isinstance(value, type):
                if value.__module__ == name:
                    for own, held in list(vars(value).items()):
                        if callable(held):
                            yield _Attribute(value, own), held
            elif isinstance(value, dict):
                for own, held in list(value.items()):
                    if isinstance(held, FunctionType):
                        yield _Item(value, own), held
            elif callable(value):
                yield _Attribute(module, key), value
