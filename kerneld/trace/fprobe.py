"""Replaces functions of the kernel by wrappers while they are traced, and puts the originals back afterwards.

Owns the replaced functions and their wrappers. Knows no event. Python binds a function in each module that imports it
and in each table that holds it. The function is replaced in all of these places, and a method in its class. Several
wrappers of one function are nested, the newest outermost, and they can be removed in any order.

A bound method that an object keeps (`self._poll = self._epoll.poll`) cannot be replaced. No event depends on such a
method.

Invariant: in every place, a function without wrappers is the original object.

A search through all modules takes as long as a thousand requests. So it is done once (`_Places`), and again only if a
new module has been imported, or a place does not have its former object.
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
"""Makes a wrapper of a function: it does the same, and records that."""
_KERNEL = "kerneld"


@dataclass(frozen=True, slots=True)
class _Attribute:
    """A name of a module or a class."""

    holder: Any
    name: str

    def held(self) -> Any:
        return getattr(self.holder, "__dict__", {}).get(self.name)

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
    """The known places of the kernel's functions."""

    def __init__(self) -> None:
        self._known: dict[int, list[_Place]] = {}
        """By the id of the object in a place. Each place is checked again before it is used."""
        self._nr_modules = 0

    def find(self, function: Function) -> list[_Place]:
        """Return every place that has a function now."""
        if len(sys.modules) != self._nr_modules:
            self._look()
        found = self._known.get(id(function), [])
        home = _home(function)
        # Other code may have replaced the function when the places were looked for, and put it back.
        is_back = home.held() is function and home not in found
        if not found or is_back or any(place.held() is not function for place in found):
            self._look()
            found = self._known.get(id(function), [])
        return found

    def moved(self, old: Function, new: Function, places: list[_Place]) -> None:
        """Note that these places now have another function."""
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
        """The former object under its name. It differs from the defined function if other code has replaced it too."""
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
    """The function as it was defined."""
    wrap: Wrap


class Fprobes:
    """The replaced functions of this process."""

    def __init__(self) -> None:
        self._places = _Places()
        self._sites: dict[Function, _Site] = {}
        self._defined: dict[Function, Function] = {}
        """By wrapper, the function that it replaces."""

    def register(self, function: Function, wrap: Wrap) -> Fprobe:
        """Wrap a function of the kernel in all its places. The argument is the defined function or its current wrapper.

        Raises ValueError for an object that is no function of a module or a class of the kernel.
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
        """Remove one wrapper."""
        site = self._sites[probe.function]
        site.wraps.remove(probe.wrap)
        self._replace(probe.function, site, self._places.find(site.current))
        if not site.wraps:
            del self._sites[probe.function]

    def defined(self, function: Any) -> Any:
        """Return the defined function of a wrapper; any other object unchanged."""
        return self._defined.get(function, function) if isinstance(function, FunctionType) else function

    @property
    def functions(self) -> list[Function]:
        """The functions that are wrapped now, as they were defined (not their wrappers)."""
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
"""The replaced functions. There is only one such object, because the process has the kernel's code only once."""


def _home(function: Function) -> _Attribute:
    """Return the place of the name with which a function was defined."""
    *holders, name = function.__qualname__.split(".")
    holder: Any = sys.modules.get(function.__module__)
    for part in holders:
        holder = getattr(holder, part, None)
    return _Attribute(holder, name)


def _find_home(function: Function) -> Function:
    """Return the current object under the name with which a function was defined."""
    home = _home(function)
    found = getattr(home.holder, home.name, None)
    return found if callable(found) else function


def _everything() -> Iterator[tuple[_Place, Any]]:
    """Yield each place in the kernel's modules that has a callable object, with the object."""
    # list(): the interpreter does not allow a change of the dictionary during the loop.
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
