"""The host's limits for a process. Both sides use the same limits.

Source: Linux v6.8 Documentation/admin-guide/sysctl/vm.rst.
"""

from __future__ import annotations

import re
import resource
from pathlib import Path
from typing import NamedTuple

from kerneld.mm.limits import OVERCOMMIT_NEVER
from kerneld.referee.errors import HostError
from shared.uapi.resource import RLIM_INFINITY, Rlimit

RELATIVE_LIMITS = (Rlimit.AS.value, Rlimit.DATA.value)
"""Resources whose limits may be relative to the memory at the start of a program."""
LIMITED = (*(*RELATIVE_LIMITS, Rlimit.MEMLOCK.value) * 4, *(Rlimit.STACK.value,) * 2, 5, 16)
"""The resources of programs' limits, as often as each is chosen: nothing uses 5, RLIMIT_RSS, and 16 is invalid. Others,
as RLIMIT_CPU, would end the host's runner."""


class VmSettings(NamedTuple):
    """The files of /proc/sys/vm that count for a program, by their names."""

    max_map_count: int
    mmap_min_addr: int
    overcommit_memory: int


def host_settings() -> VmSettings:
    """Return the host's settings.

    Raises HostError if overcommit depends on the whole machine, and not only on the program.
    """
    settings = VmSettings(*(int(Path("/proc/sys/vm", name).read_text()) for name in VmSettings._fields))
    if settings.overcommit_memory == OVERCOMMIT_NEVER:
        raise HostError("vm.overcommit_memory is 2 here: who gets memory depends on all that others have been promised")
    return settings


def host_has_pkeys() -> bool:
    """Return whether the host's processor has memory protection keys, and its kernel uses them (X86_FEATURE_OSPKE)."""
    flags = re.search(r"^flags\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return flags is not None and "ospke" in flags[1].split()


def own_limits() -> tuple[tuple[int, int], ...]:
    """Return the soft and the hard limit of each resource of this process. The host's runner inherits them."""
    found = (resource.getrlimit(limit) for limit in Rlimit)
    return tuple((soft & RLIM_INFINITY, hard & RLIM_INFINITY) for soft, hard in found)
