"""The host's limits for a process. Both sides use the same limits.

Source: Linux v6.8 Documentation/admin-guide/sysctl/vm.rst.
"""

from __future__ import annotations

import re
import resource
from pathlib import Path

from kerneld.mm.limits import OVERCOMMIT_NEVER, Rlimits, Sysctl, TransparentHugepage
from kerneld.referee.errors import HostError
from shared.uapi.resource import RLIM_INFINITY, Rlimit


def host_sysctl(lowest_hint: int, thp: TransparentHugepage) -> Sysctl:
    """Return the host's settings. `lowest_hint` is the address to which the host rounds up the lowest hint.

    `thp` says which memory of the runner gets huge pages. Raises HostError if overcommit depends on the whole machine,
    and not only on the program.
    """
    values = {name: int(Path("/proc/sys/vm", name).read_text()) for name in _NAMES}
    if values["overcommit_memory"] == OVERCOMMIT_NEVER:
        raise HostError("vm.overcommit_memory is 2 here: who gets memory depends on all that others have been promised")
    return Sysctl(transparent_hugepage=thp, lsm_mmap_min_addr=lowest_hint, **values)


_NAMES = ("max_map_count", "mmap_min_addr", "overcommit_memory")


def host_has_pkeys() -> bool:
    """Return whether the host's processor has memory protection keys, and its kernel uses them (X86_FEATURE_OSPKE)."""
    flags = re.search(r"^flags\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return flags is not None and "ospke" in flags[1].split()


def own_rlimits() -> Rlimits:
    """Return the limits of this process. The host's runner inherits them."""
    rlimits = Rlimits()
    for limit in Rlimit:
        soft, hard = resource.getrlimit(limit)
        rlimits.soft[limit] = RLIM_INFINITY if soft < 0 else soft
        rlimits.hard[limit] = RLIM_INFINITY if hard < 0 else hard
    return rlimits
