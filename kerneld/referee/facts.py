"""What the referee must know of the host beside what its processes show: kernel, limits, processor, rights.

Values only, so that they can come from another machine. Knows neither kernel.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from kerneld.mm.limits import Rlimits, Sysctl, TransparentHugepage
from kerneld.referee.files import has_journal
from kerneld.referee.host_view import has_damon, has_lru_gen, runs_ksm
from kerneld.referee.layout import Layout
from kerneld.referee.limits import VmSettings, host_has_pkeys, host_settings, own_limits
from kerneld.referee.mode import Mode, thp_of
from kerneld.referee.rights import has_own_ipc, has_userfaultfd, is_host_superuser, may_raise_limits, sees_frames
from kerneld.referee.swap_lock import host_has_swap
from shared.uapi.resource import Rlimit


class HostFacts(NamedTuple):
    """A host in one mode."""

    mode: Mode
    release: str
    boot_id: str
    """The identity of the running kernel."""
    layout: Layout
    uncounted: tuple[str, ...]
    """The names of totals that are out of date on this host."""
    thp: TransparentHugepage
    """Which memory of the runner gets huge pages."""
    settings: VmSettings
    limits: tuple[tuple[int, int], ...]
    """Soft and hard, in the order of Rlimit."""
    has_pkeys: bool
    uid: int
    gid: int
    is_superuser: bool
    raises_limits: bool
    sees_frames: bool
    has_swap: bool
    """Swap of its own, outside the mode `swap`."""
    has_damon: bool
    has_lru_gen: bool
    runs_ksm: bool
    """Equal pages of mergeable memory are really merged."""
    has_journal: bool
    """The file system of the programs' files writes by its journal what ftruncate fills up with zeros."""
    has_own_ipc: bool
    """Programs may have System V shared memory: it is in a namespace of each program, and is left nowhere."""
    has_userfaultfd: bool
    """Programs may watch memory."""
    is_kerneld: bool = False
    """The runner is a native program of a kerneld (`inside`)."""
    counts: bool = False
    """Whether the counters of the whole machine are compared."""

    @property
    def sysctl(self) -> Sysctl:
        """The settings of kerneld's machine."""
        lowest = self.layout.lowest_hint
        return Sysctl(transparent_hugepage=self.thp, lsm_mmap_min_addr=lowest, **self.settings._asdict())

    def rlimits(self) -> Rlimits:
        """Return the limits of kerneld's processes."""
        rlimits = Rlimits()
        for limit, (soft, hard) in zip(Rlimit, self.limits, strict=True):
            rlimits.soft[limit], rlimits.hard[limit] = soft, hard
        return rlimits

    def to_values(self) -> list[Any]:
        """Return plain values, as JSON has them."""
        return list(self)

    @classmethod
    def from_values(cls, values: list[Any]) -> HostFacts:
        """Return the facts in `to_values`'s values after JSON. Raises ValueError for others."""
        try:
            found = cls(*values)
            brk, taken, *rest = found.layout
            return found._replace(
                mode=Mode(found.mode),
                layout=Layout(brk, tuple((start, end) for start, end in taken), *rest),
                uncounted=tuple(found.uncounted),
                thp=TransparentHugepage(found.thp),
                settings=VmSettings(*found.settings),
                limits=tuple((soft, hard) for soft, hard in found.limits),
            )
        except TypeError as error:
            raise ValueError(f"no facts of a host: {error}") from None


def find_facts(
    mode: Mode, layout: Layout, uncounted: frozenset[str] = frozenset(), *, counts: bool = False
) -> HostFacts:
    """Return the facts of this machine. Raises HostError if it cannot be the referee in this mode."""
    return HostFacts(
        mode=mode,
        release=os.uname().release,
        boot_id=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        layout=layout,
        uncounted=tuple(sorted(uncounted)),
        thp=thp_of(mode),
        settings=host_settings(),
        limits=own_limits(),
        has_pkeys=host_has_pkeys(),
        uid=os.getuid(),
        gid=os.getgid(),
        is_superuser=is_host_superuser(),
        raises_limits=may_raise_limits(),
        sees_frames=sees_frames(),
        has_swap=mode is not Mode.SWAP and host_has_swap(),
        has_damon=has_damon(),
        has_lru_gen=has_lru_gen(),
        runs_ksm=runs_ksm(),
        has_journal=has_journal(Path(tempfile.gettempdir())),
        has_own_ipc=has_own_ipc(),
        has_userfaultfd=has_userfaultfd(),
        counts=counts,
    )
