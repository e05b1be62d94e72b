"""/proc/PID/status, stat, statm, comm and cmdline.

Answers to Linux v6.8 fs/proc/array.c and, for the memory part, fs/proc/task_mmu.c: task_mem(), task_statm(); for
cmdline fs/proc/base.c: get_mm_cmdline().

Differs from Linux: status has only the lines that make sense on this machine, in Linux's order. The process that reads
the file is running, all others sleep. Processor times are 0; the host has those of the real process.
"""

from __future__ import annotations

import os
from signal import SIGCHLD

from kerneld.errors import SysError
from kerneld.mm.calls.access import read_remote_vm
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.rss import Rss
from kerneld.task.real_process import find_ppid
from kerneld.task.task import Process
from shared.uapi.auxvec import CLOCKS_PER_SEC
from shared.uapi.page import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, Pid, Vaddr, page_align
from shared.uapi.resource import RLIM_INFINITY
from shared.uapi.signals import Disposition

_RLIMIT_RSS = 5
_STATES = {"R": "R (running)", "S": "S (sleeping)"}
_SIGNALS_IN_STAT = (1 << 31) - 1
_NICE_0_PRIORITY = 20


def state_letter(process: Process, reader: Process) -> str:
    """Return R for the process that makes the call, S for any other process."""
    return "R" if process is reader else "S"


def show_personality(process: Process) -> bytes:
    """Return /proc/PID/personality. Source: Linux v6.8 fs/proc/base.c:proc_pid_personality()."""
    return f"{process.threads[0].personality if process.threads else 0:08x}\n".encode()


def show_status(process: Process, reader: Process) -> bytes:
    """Return /proc/PID/status. Source: Linux v6.8 fs/proc/array.c:proc_pid_status()."""
    cred = process.cred
    name = process.comm.replace("\\", "\\\\").replace("\n", "\\n")
    pending = process.threads[0].pending if process.threads else 0
    lines = [
        f"Name:\t{name}",
        f"State:\t{_STATES[state_letter(process, reader)]}",
        f"Tgid:\t{process.pid}",
        "Ngid:\t0",
        f"Pid:\t{process.pid}",
        f"PPid:\t{find_ppid(process.pid) or 0}",
        "TracerPid:\t0",
        "Uid:" + f"\t{cred.uid}" * 4,
        "Gid:" + f"\t{cred.gid}" * 4,
        *_memory_lines(process.live_mm),
        "CoreDumping:\t0",
        f"Threads:\t{len(process.threads)}",
        f"SigPnd:\t{pending:016x}",
        f"ShdPnd:\t{0:016x}",
        f"SigBlk:\t{0:016x}",
        f"SigIgn:\t{_signal_mask(process, Disposition.IGNORE):016x}",
        f"SigCgt:\t{_signal_mask(process, Disposition.CAUGHT):016x}",
    ]
    return os.fsencode("\n".join(lines) + "\n")


def _memory_lines(mm: MmStruct) -> list[str]:
    """Source: Linux v6.8 fs/proc/task_mmu.c:task_mem()."""
    resident = mm.rss.resident_pages
    exec_bytes = mm.exec_vm << PAGE_SHIFT
    text = min(_text_bytes(mm), exec_bytes)
    rows = [
        ("VmPeak", max(mm.hiwater_vm, mm.total_vm) << PAGE_SHIFT),
        ("VmSize", mm.total_vm << PAGE_SHIFT),
        ("VmLck", mm.locked_vm << PAGE_SHIFT),
        ("VmPin", 0),
        ("VmHWM", max(mm.rss.hiwater, resident) << PAGE_SHIFT),
        ("VmRSS", resident << PAGE_SHIFT),
        ("RssAnon", mm.rss.counts[Rss.ANON] << PAGE_SHIFT),
        ("RssFile", mm.rss.counts[Rss.FILE] << PAGE_SHIFT),
        ("RssShmem", mm.rss.counts[Rss.SHMEM] << PAGE_SHIFT),
        ("VmData", mm.data_vm << PAGE_SHIFT),
        ("VmStk", mm.stack_vm << PAGE_SHIFT),
        ("VmExe", text),
        ("VmLib", exec_bytes - text),
        ("VmPTE", (mm.page_table.table_pages - 1) << PAGE_SHIFT),
        ("VmSwap", mm.rss.counts[Rss.SWAP] << PAGE_SHIFT),
        ("HugetlbPages", 0),
    ]
    return [f"{name}:\t{size_bytes >> 10:8} kB" for name, size_bytes in rows]


def _text_bytes(mm: MmStruct) -> int:
    return page_align(mm.end_code) - (mm.start_code & PAGE_MASK)


def _signal_mask(process: Process, disposition: Disposition) -> int:
    return sum(1 << signo - 1 for signo, is_now in process.dispositions.items() if is_now == disposition)


def show_statm(process: Process) -> bytes:
    """Return /proc/PID/statm, in pages. Source: Linux v6.8 fs/proc/array.c:proc_pid_statm()."""
    mm = process.live_mm
    shared = mm.rss.counts[Rss.FILE] + mm.rss.counts[Rss.SHMEM]
    text = _text_bytes(mm) >> PAGE_SHIFT
    return f"{mm.total_vm} {mm.rss.resident_pages} {shared} {text} 0 {mm.data_vm + mm.stack_vm} 0\n".encode()


def show_stat(process: Process, reader: Process, *, permitted: bool) -> bytes:
    """Return the 52 fields of /proc/PID/stat. Addresses are 0 unless `permitted` (`ptrace_may_access`).

    Source: Linux v6.8 fs/proc/array.c:do_task_stat().
    """
    mm = process.live_mm
    state = state_letter(process, reader)
    pending = process.threads[0].pending if process.threads else 0
    ticks = int(process.start_time * CLOCKS_PER_SEC)
    group, session = _group_and_session(process.pid)
    times = (0, 0, 0, 0)
    fields: list[int | str] = [
        *(state, find_ppid(process.pid) or 0, group, session, 0, -1, 0),
        *(process.min_flt, 0, process.maj_flt, 0, *times, _NICE_0_PRIORITY, 0, len(process.threads), 0),
        *(ticks, mm.total_vm << PAGE_SHIFT, mm.rss.resident_pages, mm.rlimits.soft[_RLIMIT_RSS]),
        *((mm.start_code, mm.end_code, mm.start_stack) if permitted else (1, 1, 0)),
        *(0, 0, pending & _SIGNALS_IN_STAT, 0),
        _signal_mask(process, Disposition.IGNORE) & _SIGNALS_IN_STAT,
        _signal_mask(process, Disposition.CAUGHT) & _SIGNALS_IN_STAT,
        int(permitted and len(process.threads) < 2 and state != "R"),
        *(0, 0, int(SIGCHLD), 0, 0, 0, 0, 0, 0),
        *(_data_addresses(mm) if permitted else (0,) * 7),
        0,
    ]
    return os.fsencode(f"{process.pid} ({process.comm}) " + " ".join(map(str, fields)) + "\n")


def _data_addresses(mm: MmStruct) -> tuple[Vaddr, ...]:
    return mm.start_data, mm.end_data, mm.start_brk, mm.arg_start, mm.arg_end, mm.env_start, mm.env_end


def _group_and_session(pid: Pid) -> tuple[Pid, Pid]:
    try:
        return os.getpgid(pid), os.getsid(pid)
    except OSError:
        return 0, 0


def show_comm(process: Process) -> bytes:
    """Return /proc/PID/comm. Source: Linux v6.8 fs/proc/base.c:comm_show()."""
    return os.fsencode(process.comm + "\n")


def show_cmdline(process: Process) -> bytes:
    """Return the program's arguments from its memory, each ended by NUL; empty without an execve.

    A program that has overwritten the last NUL has set a title: then up to a page of the title.
    Source: Linux v6.8 fs/proc/base.c:get_mm_cmdline().
    """
    mm = process.live_mm
    start, end = mm.arg_start, mm.arg_end
    if not mm.env_end or start >= end:
        return b""
    arguments = _read_anonymous(mm, start, end)
    if len(arguments) < end - start or arguments.endswith(b"\0"):
        return arguments
    title = _read_anonymous(mm, start, start + PAGE_SIZE)
    return title[: title.find(b"\0") + 1 or None]


def _read_anonymous(mm: MmStruct, start: Vaddr, end: Vaddr) -> bytes:
    """Return the readable part of [start, end) in anonymous pages (Linux: FOLL_ANON)."""
    data = b""
    while start < end:
        stop = min(end, (start & PAGE_MASK) + PAGE_SIZE)
        vma = mm.vmas.lookup(start)
        if vma is None or not vma.is_anonymous:
            break
        try:
            data += read_remote_vm(mm, start, stop - start)
        except SysError:
            if mm.frames.has_stalled:
                raise
            break
        start = stop
    return data


_LIMITS = (
    ("cpu time", "seconds"), ("file size", "bytes"), ("data size", "bytes"), ("stack size", "bytes"),
    ("core file size", "bytes"), ("resident set", "bytes"), ("processes", "processes"), ("open files", "files"),
    ("locked memory", "bytes"), ("address space", "bytes"), ("file locks", "locks"), ("pending signals", "signals"),
    ("msgqueue size", "bytes"), ("nice priority", ""), ("realtime priority", ""), ("realtime timeout", "us"),
)  # fmt: skip
"""By number of the resource: name and unit."""


def show_limits(process: Process) -> bytes:
    """Return the limits: kerneld's own are those of memory. Source: Linux v6.8 fs/proc/base.c:proc_pid_limits()."""
    limits = process.rlimits
    lines = [f"{'Limit':<25} {'Soft Limit':<20} {'Hard Limit':<20} {'Units':<10}\n"]
    for number, (name, unit) in enumerate(_LIMITS):
        soft, hard = (
            "unlimited" if value == RLIM_INFINITY else str(value)
            for value in (limits.soft[number], limits.hard[number])
        )
        lines.append(f"{'Max ' + name:<25} {soft:<20} {hard:<20} {f'{unit:<10}' if unit else ''}\n")
    return "".join(lines).encode()
