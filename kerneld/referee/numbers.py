"""The numbers of a process's memory in /proc: reads them from the same files on both sides, and compares them.

The runner's own memory is in the same address space as the program's. This module subtracts the runner's part from sums
over all mappings. Knows neither kernel. Answers to Linux v6.8 fs/proc/task_mmu.c (smaps,
smaps_rollup, task_mem(), task_statm()) and fs/proc/array.c:do_task_stat().
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from typing import NamedTuple

from kerneld.referee.outcome import Mapping, key_word, parse_maps_line

_SMAPS = re.compile(rb"^([0-9a-f]+-[0-9a-f]+ .*)\n((?:[A-Z].*\n)*?)VmFlags: (.*)\n", re.MULTILINE)
_NUMBER = re.compile(rb"^(\w+): *\t? *(\d+)(?: kB)?$", re.MULTILINE)
_V6_8_FLAGS = {"lf": "??"}
"""VmFlags with another name in newer kernels (`kerneld.referee.known`)."""
_STATM = ("size", "resident", "shared", "text", "lib", "data", "dt")
_STAT_VSIZE, _STAT_RSS, _STAT_RSSLIM = 22, 23, 24
"""Fields of /proc/PID/stat, from 0: Linux v6.8 Documentation/filesystems/proc.rst, table 1-4."""
_SINCE_START = ("VmData", "VmStk", "VmExe", "VmLib", "VmPTE", "statm text", "statm data")
"""The runner's part of these numbers never changes. So they are counted from the program's start."""
_ROUNDED = frozenset({"Pss", "Pss_Dirty", "Pss_Anon", "Pss_File", "Pss_Shmem", "SwapPss", "Locked"})
"""Shares of pages, which are rounded down to kB for each mapping, and once for the sum."""
_ROUNDED_OWN = 4
"""The largest error in kB of such a sum after the runner's mappings are subtracted."""
_BATCHED = 1024 + 65 * 16 * 4
"""How far the noted maximum of resident memory may lag behind, in kB: three counters, each by up to 32 pages, and the
growth of the runner's own stack meanwhile (Linux v6.8 mm/percpu_counter.c: percpu_counter_batch). Before v6.2 a
thread keeps to itself what 65 faults have added, up to 16 pages each (Linux v6.1 mm/memory.c:check_sync_rss_stat(),
TASK_RSS_EVENTS_THRESH; do_fault_around())."""
COUNTERS = {
    "VmRSS": "VmRSS", "RssAnon": "RssAnon", "RssFile": "VmRSS", "RssShmem": "VmRSS", "VmSwap": "VmRSS",
    "statm resident": "statm resident", "statm shared": "statm resident", "stat rss": "stat rss",
}  # fmt: skip
"""The counters that a kernel may update in batches, so that they lag behind, each with the counter that shows it."""

_OWN_KINDS = {"/dev/zero (deleted)": "Shmem", "[stack]": "Anon"}
"""The kind of the pages of the runner's mappings, by name. The other mappings map its program."""


class ProcTexts(NamedTuple):
    """The texts of a process's /proc directory at one moment."""

    rollup: bytes
    """Empty if only a part is compared now."""
    status: bytes
    statm: bytes
    stat: bytes


def parse_smaps(text: bytes) -> list[Mapping]:
    """Return the mappings of a smaps text. New names of VmFlags are replaced by those of v6.8."""
    return [_parse_mapping(*found) for found in _SMAPS.findall(text)]


def parse_maps(text: bytes) -> list[Mapping]:
    """Return the mappings of a maps text, without flags and numbers."""
    return [_parse_line(line) for line in text.splitlines()]


_NR_PARSED = 1 << 14
"""The number of results that are kept: most mappings do not change in a call, and a program may have hundreds."""


@functools.lru_cache(_NR_PARSED)
def _parse_line(line: bytes) -> Mapping:
    return Mapping(*parse_maps_line(line), ())


@functools.lru_cache(_NR_PARSED)
def _parse_mapping(line: bytes, numbers: bytes, flags: bytes) -> Mapping:
    """Parse one mapping."""
    names = tuple(_V6_8_FLAGS.get(flag, flag) for flag in flags.decode().split())
    return Mapping(*parse_maps_line(line), (*names, *key_word(parse_numbers(numbers).get("ProtectionKey", 0))), numbers)


@functools.lru_cache(_NR_PARSED)
def parse_numbers(text: bytes) -> dict[str, int]:
    """Return the numbers of lines like `Rss:   4 kB`, by name, in the unit of the line."""
    return {name.decode(): int(value) for name, value in _NUMBER.findall(text)}


def totals(texts: ProcTexts, own: Iterable[Mapping]) -> dict[str, int]:
    """Return the numbers of all memory of a process, without the runner's `own` mappings, in kB or pages.

    The numbers of `_SINCE_START` still include the runner's mappings: see `since`.
    """
    rollup, status = parse_numbers(texts.rollup), parse_numbers(texts.status)
    if not texts.rollup:
        # How much the runner's own mappings have is in smaps, which is not read then.
        found = status | {f"statm {name}": int(value) for name, value in zip(_STATM, texts.statm.split(), strict=True)}
        return {name: found[name] for name in _SINCE_START}
    mine: dict[str, int] = dict.fromkeys((*rollup, "Size", "VmLck", "Anon", "File", "Shmem"), 0)
    for mapping in own:
        _add_own(mine, mapping)
    found = {f"rollup {name}": value - mine[name] for name, value in rollup.items()}
    found |= {name: value for name, value in status.items() if name.startswith(("Vm", "Rss"))}
    found |= {f"statm {name}": int(value) for name, value in zip(_STATM, texts.statm.split(), strict=True)}
    stat = texts.stat.rpartition(b")")[2].split()
    found["stat vsize"] = (int(stat[_STAT_VSIZE - 2]) >> 10) - mine["Size"]
    found["stat rss"] = int(stat[_STAT_RSS - 2]) - (mine["Rss"] >> 2)
    found["stat rsslim"] = int(stat[_STAT_RSSLIM - 2])
    for name, part, shift in (
        ("VmSize", "Size", 0), ("VmPeak", "Size", 0), ("statm size", "Size", 2), ("VmLck", "VmLck", 0),
        ("VmRSS", "Rss", 0), ("VmHWM", "Rss", 0), ("statm resident", "Rss", 2), ("RssAnon", "Anonymous", 0),
        ("RssFile", "File", 0), ("RssShmem", "Shmem", 0), ("statm shared", "File", 2), ("statm shared", "Shmem", 2),
    ):  # fmt: skip
        found[name] -= mine[part] >> shift
    return found


def _add_own(mine: dict[str, int], mapping: Mapping) -> None:
    if mapping.name == "[vsyscall]":
        # This is no VMA, so the sums do not include it.
        return
    numbers = parse_numbers(mapping.numbers)
    for name, value in numbers.items():
        if name in mine:
            mine[name] += value
    if "lo" in mapping.flags:
        mine["VmLck"] += numbers["Size"]
    kind = _OWN_KINDS.get(mapping.name, "File")
    mine[f"Pss_{kind}"] += numbers["Pss"]
    mine[kind] += numbers["Rss"] - numbers["Anonymous"]


def since(found: dict[str, int], start: dict[str, int]) -> dict[str, int]:
    """Return totals without the runner's part, which is their value at the start of the program."""
    return found | {name: found[name] - start[name] for name in _SINCE_START}


def find_different_number(
    ours: bytes, hosts: bytes, left_out: frozenset[str] = frozenset()
) -> tuple[str, int, int] | None:
    """Return the first number that differs between the texts of two mappings, or None. Only common numbers count."""
    if ours == hosts:
        return None
    mine, theirs = parse_numbers(ours), parse_numbers(hosts)
    compared = mine.keys() & theirs.keys() - left_out
    return next(
        ((name, mine[name], theirs[name]) for name in mine if name in compared and mine[name] != theirs[name]), None
    )


def find_different_total(
    ours: dict[str, int], hosts: dict[str, int], left_out: frozenset[str] = frozenset()
) -> tuple[str, int, int] | None:
    """Return the first total that differs, or None. An inexact total may differ by its tolerance."""
    for name, mine in ours.items():
        if name in hosts and name not in left_out:
            theirs = hosts[name]
            if mine != theirs and abs(mine - theirs) > _slack(name, hosts):
                return name, mine, theirs
    return None


def _slack(name: str, hosts: dict[str, int]) -> int:
    if name == "VmHWM" and "stat rss" not in hosts:
        return _BATCHED
    return _ROUNDED_OWN if name.rpartition(" ")[2] in _ROUNDED else 0
