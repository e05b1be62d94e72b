"""What a machine of the model has, in words that JavaScript has too: the two models of a record are compared by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shared.recording.machine import Machine
from shared.trace.event import PRESENT, PSE, run_of

IN_THE_PAGE = f"({Path(__file__).with_suffix('.js').read_text()})"
"""A function of JavaScript that returns the same of the page's model."""


def summary(machine: Machine) -> dict[str, Any]:
    """Return the same of the Python model."""
    shadow = machine.shadow
    return {
        "mms": [_mm(machine, number) for number in sorted(machine.mms)],
        "tasks": [
            [task.pid, task.ppid, task.comm, task.mm, task.exit_signal, task.program]
            for _pid, task in sorted(machine.tasks.items())
        ],
        "files": [[number, *file] for number, file in sorted(machine.files.items())],
        "frames": "".join(map(str, machine.frames)),
        "flags": machine.frame_flags.tolist(),
        "cached": [[pfn, *page] for pfn, page in sorted(machine.cached.items())],
        "shmem": [[*page, slot] for page, slot in sorted(machine.shmem_slots.items())],
        "swap": [list(pair) for pair in sorted(machine.swap_cache.items())],
        "shadow": shadow
        and [
            shadow.opener, shadow.target, shadow.start, shadow.end, shadow.is_tracking, shadow.flags.tolist(),
            shadow.pfns.tolist(),
        ],
        "whole": machine.is_whole,
        "time": str(machine.time),
    }  # fmt: skip


def _mm(machine: Machine, number: int) -> list[Any]:
    mm = machine.mms[number]
    entries, huge = [], []
    for run in mm.runs():
        if run.entry & PRESENT and run.entry & PSE:
            huge.append([run.vaddr >> 21, *_halves(run.entry)])
        else:
            first = run.vaddr >> 12
            entries += [[first + n, *_halves(entry)] for n, entry in enumerate(run_of(run.entry, run.nr_pages))]
    tables = sorted([vaddr * 8 + level, pfn] for (level, vaddr), pfn in mm.tables.items())
    vmas = [list(vma) for _start, vma in sorted(mm.vmas.items())]
    return [
        number, mm.pid, mm.start_brk, mm.brk, mm.start_stack, mm.rss, vmas, tables, sorted(mm.deposited), entries, huge,
    ]  # fmt: skip


def _halves(entry: int) -> list[int]:
    return [entry & 0xFFFF_FFFF, entry >> 32]
