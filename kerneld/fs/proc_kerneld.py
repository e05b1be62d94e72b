"""/proc/kerneld: facts about the daemon, for its own commands. Linux has no such files."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable

from kerneld.fs.proc_array import state_letter
from kerneld.mm.frames.frames import Frames
from kerneld.task.task import Process
from shared.uapi.page import PAGE_SHIFT, Pid


def show_kerneld_status(
    frames: Frames, nr_unused: int, nr_tasks: int, start_time: float, shadow: tuple[str, Pid | None, Pid | None]
) -> bytes:
    """Return lines of `Key:\\tvalue`. `shadow` has the table's state, its opener and its target.

    `nr_unused` is the number of cached pages of files that nothing maps. `start_time` is CLOCK_MONOTONIC when the
    machine started, in seconds.
    """
    state, opener, target = shadow
    swap = frames.swap
    rows: list[tuple[str, object]] = [
        ("Pid", os.getpid()),
        ("Uptime", f"{time.monotonic() - start_time:.2f} s"),
        ("MemTotal", f"{frames.total_pages << PAGE_SHIFT - 10} kB"),
        ("MemFree", f"{frames.free_pages << PAGE_SHIFT - 10} kB"),
        ("CachedUnused", f"{nr_unused << PAGE_SHIFT - 10} kB"),
        ("SwapTotal", f"{swap.total_pages << PAGE_SHIFT - 10} kB"),
        ("SwapFree", f"{swap.nr_free << PAGE_SHIFT - 10} kB"),
        ("Tasks", nr_tasks),
        # The number of ended processes whose memory is not freed yet.
        ("Exiting", len(frames.dying.queue) if frames.dying is not None else 0),
        ("ShadowTable", state),
    ]
    if opener is not None:
        rows += [("ShadowOpener", opener), ("ShadowTarget", target)]
    return "".join(f"{key}:\t{value}\n" for key, value in rows).encode()


def show_tasks(processes: Iterable[Process], reader: Process) -> bytes:
    """Return one line for each process: pid, uid, threads, vsz and rss in kB, state, comm, separated by tabs."""
    lines = []
    for process in processes:
        mm = process.live_mm
        vsz_kb, rss_kb = mm.total_vm << PAGE_SHIFT - 10, mm.rss.resident_pages << PAGE_SHIFT - 10
        comm = process.comm.replace("\\", "\\\\").replace("\n", "\\n")
        fields = (process.pid, process.cred.uid, len(process.threads), vsz_kb, rss_kb, state_letter(process, reader))
        lines.append("\t".join([*map(str, fields), comm]) + "\n")
    return os.fsencode("".join(lines))
