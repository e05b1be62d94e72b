"""One mistake, in words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bug:
    """What a kernel does wrong, and which checks of the kit must find it. The first names the mistake best."""

    words: str
    checks: tuple[str, ...]
