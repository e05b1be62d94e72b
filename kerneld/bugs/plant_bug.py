"""Plants one mistake of the catalogue in the kernel of this process."""

from __future__ import annotations

from importlib import import_module

from kerneld.bugs.planting import PLANTS

_MODULES = ("opening", "entries", "closing", "tracking", "mappings", "frames", "contents")


def known_plants() -> dict[str, object]:
    """Return all plants by name. Imports them."""
    for module in _MODULES:
        import_module(f"kerneld.bugs.plants.{module}")
    return dict(PLANTS)


def plant_bug(name: str) -> None:
    """Plant the mistake `name`, for the life of this process. Call it before the kernel is made. Raises KeyError."""
    known_plants()
    PLANTS[name]()
