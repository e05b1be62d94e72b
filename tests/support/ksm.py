"""KSM of a machine in tests: the scan run by hand, and what it has found."""

from __future__ import annotations

from kerneld.mm.frames.frames import PG_KSM
from kerneld.mm.ksm.scan import ksm_do_scan
from kerneld.mm.ksm.sysfs import show_ksm, store_ksm
from kerneld.mm.space.ksm import ksm_of
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.pace import run_at_once
from shared.uapi.mman import Madv
from shared.uapi.page import PAGE_SIZE
from tests.support.machine import Machine, advise, mmap, page, pfn_of, store

_MORE_THAN_ALL = 1 << 20


def scan(machine: Machine, times: int = 1) -> None:
    """Scan the whole machine, and check every invariant after each full scan."""
    for _ in range(times):
        for _ in ksm_do_scan(ksm_of(machine.frames), machine.frames, _MORE_THAN_ALL, lambda mm: False):
            pass
        machine.check()


def sysfs(machine: Machine, name: str) -> int:
    """Return the number in a file of /sys/kernel/mm/ksm."""
    return int(show_ksm(machine.frames, name))


def write_sysfs(machine: Machine, name: str, text: object) -> None:
    """Write to a file of /sys/kernel/mm/ksm."""
    run_at_once(store_ksm(machine.frames, name, f"{text}\n"))


def counts(machine: Machine) -> tuple[int, int, int, int]:
    """Return pages_shared, pages_sharing, pages_unshared and pages_volatile."""
    shared, sharing = sysfs(machine, "pages_shared"), sysfs(machine, "pages_sharing")
    return shared, sharing, sysfs(machine, "pages_unshared"), sysfs(machine, "pages_volatile")


def mergeable(mm: MmStruct, contents: str, first: int = 0) -> None:
    """Map mergeable pages from page `first` on; each is filled with one letter of `contents`, `.` is not touched."""
    mmap(mm, len(contents), at=page(first))
    advise(mm, first, len(contents), Madv.MERGEABLE)
    fill(mm, contents, first)


def fill(mm: MmStruct, contents: str, first: int = 0) -> None:
    """Fill pages with letters; `0` is a page of zeros that was written."""
    for number, letter in enumerate(contents, first):
        if letter != ".":
            data = b"\0" if letter == "0" else letter.encode()
            store(mm, page(number), data * PAGE_SIZE)


def text(mm: MmStruct, count: int, first: int = 0) -> str:
    """Return the contents of pages as `fill` takes them, without a fault; `.` is a page that is not present."""
    words = []
    for number in range(first, first + count):
        pfn = pfn_of(mm, page(number))
        byte = bytes(mm.frames.ram.page(pfn)[:1]) if pfn else b"."
        words.append("0" if byte == b"\0" else byte.decode())
    return "".join(words)


def merged(mm: MmStruct, count: int, first: int = 0) -> str:
    """Return for each page `k` if it maps a merged frame, `-` if another, or none."""
    flags = mm.frames.flags_at
    pfns = [pfn_of(mm, page(number)) for number in range(first, first + count)]
    return "".join("k" if pfn and flags[pfn] & PG_KSM else "-" for pfn in pfns)
