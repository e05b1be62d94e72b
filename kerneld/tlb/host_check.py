"""The check, in tests, that the host really maps no more of the RAM than a TLB has granted: page by page.

It is made when a request of a native thread comes: the thread has carried out all answers by then, and the agent all
orders. Knows the format of the host's /proc/PID/maps and smaps.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from kerneld.errors import KernelBug
from kerneld.tlb.rights import EXEC, KEY_MASK, KEY_SHIFT, READ, RIGHTS, WRITE
from shared.uapi.native import STUB_END, STUB_START
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE, PMD_SHIFT, Pid, Vaddr

if TYPE_CHECKING:
    from kerneld.tlb.rights import TlbWords

_RAM = "/memfd:kerneld-ram"


class HostMapping(NamedTuple):
    """A mapping of the RAM's file in a process."""

    start: Vaddr
    end: Vaddr
    word: int
    """The TLB word of its first page."""


def host_mappings(pid: Pid, *, keyed: bool = True) -> Iterator[HostMapping]:
    """Yield what the host maps of the RAM in a process, outside its stub. A process that has ended has none.

    Without `keyed` no protection key is looked for: smaps takes the host longer than maps.
    """
    try:
        lines = Path(f"/proc/{pid}/{'smaps' if keyed else 'maps'}").read_text().splitlines()
    except OSError:
        return
    found: HostMapping | None = None
    for line in lines:
        word = line.partition(" ")[0]
        if not word.endswith(":"):
            if found is not None:
                yield found
            found = _parse_mapping(line)
        elif found is not None and word == "ProtectionKey:":
            found = found._replace(word=found.word | int(line.split()[1]) << KEY_SHIFT)
    if found is not None:
        yield found


def _parse_mapping(line: str) -> HostMapping | None:
    """Return the mapping that a line of maps shows, without its key; None if it is not of the RAM, or of the stub."""
    bounds, rights, offset, _, _, *name = line.split(maxsplit=5)
    start, end = (int(bound, 16) for bound in bounds.split("-"))
    if not name or not name[0].startswith(_RAM) or STUB_START <= start < STUB_END:
        return None
    bits = READ * (rights[0] == "r") | WRITE * (rights[1] == "w") | EXEC * (rights[2] == "x")
    return HostMapping(start, end, int(offset, 16) | bits)


def check_host(pid: Pid, granted: dict[int, TlbWords]) -> None:
    """Raise KernelBug if the host maps another page in a process than is granted, or with more rights.

    `granted` has the TLB words of `kerneld.tlb.tlb.Tlb`.
    """
    keyed = any((table & np.uint64(KEY_MASK)).any() for table in granted.values())
    for mapping in host_mappings(pid, keyed=keyed):
        for number, vaddr in enumerate(range(mapping.start, mapping.end, PAGE_SIZE)):
            word = mapping.word + (number << PAGE_SHIFT)
            table = granted.get(vaddr >> PMD_SHIFT)
            allowed = 0 if table is None else int(table[vaddr >> PAGE_SHIFT & 511])
            if (word ^ allowed) & ~RIGHTS or word & ~allowed & RIGHTS:
                raise KernelBug(f"the host maps {word:#x} at {vaddr:#x} in process {pid}; granted is {allowed:#x}")
