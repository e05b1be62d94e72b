"""What changes in /proc/vmstat and /proc/meminfo in one operation: the counters of the whole machine, on both sides.

A host can be compared only if nothing else runs there. Even then only some counters are exact: those of memory that
programs map, and of their faults. Knows neither kernel. Answers to Linux v6.8 mm/vmstat.c and fs/proc/meminfo.c.
"""

from __future__ import annotations

import os
import re
import resource
from pathlib import Path
from typing import NamedTuple

from kerneld.referee.errors import HostError

COMPARED = (
    "nr_anon_pages", "nr_mapped", "nr_mlock", "nr_unevictable", "nr_page_table_pages", "nr_anon_transparent_hugepages",
    "pgfault", "pgmajfault", "pglazyfree", "pglazyfreed", "pswpin", "pswpout", "thp_fault_alloc", "thp_fault_fallback",
    "thp_collapse_alloc", "thp_split_pmd", "Committed_AS",
)  # fmt: skip
"""The counters that are exact. docs/fidelity.md says why the others are not."""
NOT_EXACT = frozenset({"fork", "exit", "mlockall", "munlockall", "ftruncate"})
"""The operations that also change the runner's memory, or pages of a memory file that kerneld has not read."""
TABLES, PROMISED = "nr_page_table_pages", "Committed_AS"
IN_MEMORY = frozenset({"memfd", "sealable", "tmpfs"})
"""Files whose pages kerneld promises when it reads them. Programs that have some are compared without PROMISED."""
OF_THE_MACHINE = " of the machine"
"""The end of a difference in a counter. Something else may have run meanwhile, so that it counts if it comes again."""
_LINE = re.compile(rb"^(\w+)(?: |: +)(\d+)", re.MULTILINE)
_NAMES = frozenset(name.encode() for name in COMPARED)


class Counters(NamedTuple):
    """The counters of a machine at one moment, unparsed: parsing needs memory."""

    vmstat: bytes
    meminfo: bytes
    faults_before: int = 0
    """The page faults of who reads the counters, before that."""
    faults_after: int = 0
    """And after that."""
    uncompared_faults: int = 0
    """Faults that are counted, but not compared."""

    def since(self, before: Counters) -> dict[str, int]:
        """Return the differences of the compared counters; none if the reader's own memory has changed meanwhile."""
        if self.faults_after != before.faults_before:
            return {}
        old, new = _parse(before), _parse(self)
        found = {name: new[name] - old[name] for name in COMPARED if name in new and name in old}
        found["pgfault"] -= self.uncompared_faults - before.uncompared_faults
        return found


def _parse(counters: Counters) -> dict[str, int]:
    lines = (*_LINE.findall(counters.vmstat), *_LINE.findall(counters.meminfo))
    return {name.decode(): int(value) for name, value in lines if name in _NAMES}


class HostCounters:
    """Reads the host's counters. Each processor keeps a part of them to itself, which is collected first."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        """Raises HostError if this user may not have them collected."""
        try:
            self._refresh = os.open(proc / "sys/vm/stat_refresh", os.O_WRONLY)
        except OSError as error:
            raise HostError(f"the counters of the whole machine are not exact here: {error.strerror}") from None
        self._vmstat, self._meminfo = (os.open(proc / name, os.O_RDONLY) for name in ("vmstat", "meminfo"))

    def __call__(self) -> Counters:
        """Return the counters now. Source: Linux v6.8 mm/vmstat.c:vmstat_refresh()."""
        before = _own_faults()
        os.write(self._refresh, b"1")
        vmstat, meminfo = os.pread(self._vmstat, 1 << 14, 0), os.pread(self._meminfo, 1 << 13, 0)
        return Counters(vmstat, meminfo, before, _own_faults())

    def close(self) -> None:
        """Close the files."""
        for fd in (self._refresh, self._vmstat, self._meminfo):
            os.close(fd)


def _own_faults() -> int:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_minflt + usage.ru_majflt


def find_different_counter(ours: dict[str, int], hosts: dict[str, int]) -> tuple[str, int, int] | None:
    """Return the first counter that changed in another way, or None."""
    return next(
        ((name, mine, hosts[name]) for name, mine in ours.items() if name in hosts and mine != hosts[name]), None
    )
