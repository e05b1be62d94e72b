"""The modes of the referee: features of both machines beside memory, files and processes.

Owns the names, and the requirements of each mode on the host. Knows neither kernel.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from kerneld.mm.limits import TransparentHugepage
from kerneld.referee.errors import HostError

_THP = Path("/sys/kernel/mm/transparent_hugepage")


class Mode(StrEnum):
    """A kind of run."""

    PLAIN = "plain"
    """No huge pages, no swap."""
    HUGE = "huge"
    """Huge pages, with the host's setting: `always` or `madvise`."""
    SWAP = "swap"
    """A swap file on both sides. The host gets it for the run: see `kerneld.referee.host_swap`."""
    MANY = "many"
    """As PLAIN, for programs with hundreds of mappings. Most of the time only a part is compared: see `is_whole`."""


def thp_of(mode: Mode) -> TransparentHugepage:
    """Return the setting of huge pages for a mode on this host. Raises HostError if the setting rules out the mode."""
    if mode is not Mode.HUGE:
        return TransparentHugepage.NEVER
    enabled = _chosen(_THP / "enabled")
    if enabled in ("", TransparentHugepage.NEVER):
        raise HostError(f"this host gives nobody huge pages: {_THP / 'enabled'} says {enabled or 'nothing'}")
    sizes = [
        folder.name
        for folder in _THP.glob("hugepages-*kB")
        if folder.name != "hugepages-2048kB" and _chosen(folder / "enabled") not in ("", "never")
    ]
    if sizes:
        raise HostError(f"this host has huge pages of other sizes than 2 MiB too: {', '.join(sorted(sizes))}")
    if _chosen(_THP / "use_zero_page") != "1":
        raise HostError("this host has no huge zero page: use_zero_page is 0")
    return TransparentHugepage(enabled)


def _chosen(file: Path) -> str:
    """Return the word in brackets of a setting, or its only word; empty if the host has no such setting."""
    try:
        words = file.read_text().split()
    except OSError:
        return ""
    return next((word.strip("[]") for word in words if word.startswith("[")), words[0] if words else "")
