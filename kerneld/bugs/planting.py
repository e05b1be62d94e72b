"""The tools that plant a mistake: wrappers around functions of the kernel.

Owns the table of plants, by name. A plant is made before the kernel begins, and stays until the process ends.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from kerneld.shadowpt.session import ShadowPt, _Session
from kerneld.trace.fprobe import FPROBES, Wrap

Function = Callable[..., Any]

PLANTS: dict[str, Callable[[], None]] = {}
"""By name of the mistake, the function that makes it."""


def plant(name: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Put a function that makes a mistake into the table."""

    def add(make: Callable[[], None]) -> Callable[[], None]:
        PLANTS[name] = make
        return make

    return add


def wrap(function: Function) -> Callable[[Function], None]:
    """Replace a function by the decorated one, which gets the original as its first argument."""

    def replace(instead: Function) -> None:
        def make(inner: Function) -> Function:
            @functools.wraps(inner)
            def wrapper(*args: Any, **kwargs: Any) -> Any:
                return instead(inner, *args, **kwargs)

            return wrapper

        FPROBES.register(function, make)

    return replace


class _Muting:
    """While `depth` is not 0, the shadow page table is told of no change."""

    depth = 0
    is_ready = False


def _ensure_muting() -> None:
    if _Muting.is_ready:
        return
    _Muting.is_ready = True

    @wrap(ShadowPt.invalidate_range)
    def invalidate_range(inner: Function, *args: Any) -> None:
        if not _Muting.depth:
            inner(*args)


def mute(function: Function, when: Callable[..., bool] = lambda *_args, **_kwargs: True) -> None:
    """Tell the shadow page table of no change that a function makes, in the calls for which `when` is true.

    A generator is muted while it runs, and not between its pieces.
    """
    _ensure_muting()
    FPROBES.register(function, _mute_pieces(when) if inspect.isgeneratorfunction(function) else _mute_call(when))


def _mute_call(when: Callable[..., bool]) -> Wrap:
    def make(inner: Function) -> Function:
        @functools.wraps(inner)
        def muted(*args: Any, **kwargs: Any) -> Any:
            if not when(*args, **kwargs):
                return inner(*args, **kwargs)
            _Muting.depth += 1
            try:
                return inner(*args, **kwargs)
            finally:
                _Muting.depth -= 1

        return muted

    return make


def _mute_pieces(when: Callable[..., bool]) -> Wrap:
    def make(inner: Function) -> Function:
        @functools.wraps(inner)
        def muted(*args: Any, **kwargs: Any) -> Any:
            pieces = inner(*args, **kwargs)
            if not when(*args, **kwargs):
                return (yield from pieces)
            while True:
                _Muting.depth += 1
                try:
                    piece = next(pieces)
                except StopIteration as stop:
                    return stop.value
                finally:
                    _Muting.depth -= 1
                yield piece

        return muted

    return make


def ignore(function: Function) -> None:
    """Make a function do nothing, and return None."""

    @wrap(function)
    def nothing(_inner: Function, *_args: Any, **_kwargs: Any) -> None:
        return None


def session_of(table: ShadowPt) -> _Session | None:
    """Return the open table's session; None if none is open."""
    return table._session


def opener_of(table: ShadowPt) -> Any:
    """Return the process that has the table open; None if none is open."""
    session = table._session
    return None if session is None else session.opener


class Seen:
    """The kernel's shadow page table, once a table has been opened; None before. For plants outside its methods."""

    table: ShadowPt | None = None

    def __init__(self) -> None:
        @wrap(ShadowPt.open)
        def note(inner: Function, table: ShadowPt, *args: Any) -> Any:
            self.table = table
            return inner(table, *args)

    @property
    def session(self) -> _Session | None:
        """The session of the open table."""
        return None if self.table is None else self.table._session
