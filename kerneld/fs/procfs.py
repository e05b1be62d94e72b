"""The files under /proc: finds the view of a path, checks the right to read it, and reads a part of it.

Owns names and rights. The `proc_` modules make the views. Knows no request. Answers to Linux v6.8
fs/proc/base.c (tgid_base_stuff, task_dump_owner), fs/proc/root.c and fs/proc/self.c.

| path                                        | who                | read by                                        |
|---------------------------------------------|--------------------|------------------------------------------------|
| the empty path                              | all                | the pids, one on each line                     |
| PID/status, stat, statm, comm, cmdline      | all                | any offset and length                          |
| PID/maps, smaps, smaps_rollup               | ptrace_may_access  | any; the lines of a mapping stay together      |
| PID/personality                             | ptrace_may_access  | any                                            |
| PID/ksm_stat, ksm_merging_pages             | ptrace_may_access  | any                                            |
| PID/pagemap                                 | ptrace_may_access* | multiples of 8; frame numbers: the superuser   |
| PID/mem                                     | ptrace_may_access* | any; up to the first page that cannot be had   |
| PID/walk/ADDRESS (hexadecimal)              | ptrace*, superuser | any; the walk of the page table, in words      |
| PID/limits, oom_score, oom_score_adj        | all                | any; oom_score_adj is written                  |
| PID/clear_refs                              | nobody             | is written                                     |
| meminfo, vmstat, buddyinfo, swaps, sysvipc/shm | all                | any                                            |
| sys/vm/NAME, sys/kernel/NAME, the settings  | by their mode      | any; written by `write_in_pieces`              |
| sys/kernel/mm/…: those of /sys/kernel/mm    | by their mode      | any; written by `write_in_pieces`              |
| kpagecount, kpageflags                      | the superuser      | multiples of 8                                 |
| kerneld/status, kerneld/tasks               | all                | any                                            |
| kerneld/explanation                         | all, each its own  | any; why the reader's last call was refused    |

* While the process is not dumpable, the file belongs to root: then even the process itself may not read it.

PID may be `self` or `thread-self`. Differs from Linux: only the main thread has a directory. Reading the root lists the
pids; in Linux it is EISDIR.
"""

from __future__ import annotations

import errno
import functools
from collections.abc import Callable, Generator, Mapping
from typing import Protocol

from kerneld.errors import SysError
from kerneld.fs.file_table import FileTable
from kerneld.fs.proc_array import (
    show_cmdline,
    show_comm,
    show_limits,
    show_personality,
    show_stat,
    show_statm,
    show_status,
)
from kerneld.fs.proc_kerneld import show_kerneld_status, show_tasks
from kerneld.fs.proc_ksm import show_ksm_merging_pages, show_ksm_stat
from kerneld.fs.proc_maps import show_maps
from kerneld.fs.proc_mem import read_mem
from kerneld.fs.proc_page import read_kpagecount, read_kpageflags
from kerneld.fs.proc_pagemap import read_pagemap
from kerneld.fs.proc_settings import process_settings, show_oom_score, show_oom_score_adj
from kerneld.fs.proc_smaps import show_smaps, show_smaps_rollup
from kerneld.fs.proc_sysvipc import show_sysvipc_shm
from kerneld.fs.proc_vmstat import show_buddyinfo, show_meminfo, show_swaps, show_vmstat
from kerneld.fs.proc_walk import show_walk
from kerneld.fs.seq_file import SeqFiles, Show, one_record
from kerneld.fs.setting import Setting, Stores
from kerneld.fs.settings import all_settings
from kerneld.mm.frames.frames import Frames
from kerneld.mm.limits import Sysctl
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.pace import Steps, drain
from kerneld.task.capability import CAP_SYS_ADMIN, CAP_SYS_PTRACE
from kerneld.task.mmap_lock import MmapLocks
from kerneld.task.ptrace import ptrace_may_access
from kerneld.task.shm import ShmSegments
from kerneld.task.task import Process, Thread
from shared.uapi.page import TASK_SIZE, Pid

_MAX_OFFSET = (1 << 63) - 1
_MAX_PID_DIGITS = 10
_READ, _WRITE = 4, 2
_HEX_DIGITS = frozenset("0123456789abcdef")
_OF_ALL_MEMORY = frozenset({"meminfo", "vmstat", "buddyinfo", "kerneld/status", "kpagecount", "kpageflags"})


class ShadowView(Protocol):
    """The part of the shadow page table that `kerneld/status` shows."""

    def describe_session(self) -> tuple[str, Pid | None, Pid | None]:
        """Return the state in a word, and the pids of the opener and of the target while a table is open."""


class KernelView(Protocol):
    """The parts of the kernel that the views need, under the same names."""

    @property
    def frames(self) -> Frames: ...
    @property
    def files(self) -> FileTable: ...
    @property
    def processes(self) -> Mapping[Pid, Process]:
        """The living processes by pid."""

    def find_process(self, pid: Pid) -> Process | None:
        """Return the living process of a pid, also the child of a real fork that has not attached yet."""

    def admit_children(self) -> None:
        """Make the processes of children that have not attached yet."""

    @property
    def sysctl(self) -> Sysctl: ...
    @property
    def mmap_locks(self) -> MmapLocks: ...
    @property
    def shm(self) -> ShmSegments: ...
    @property
    def shadowpt(self) -> ShadowView: ...
    @property
    def start_time(self) -> float:
        """CLOCK_MONOTONIC when the machine started, in seconds."""


class ProcFs:
    """/proc of one kernel."""

    def __init__(self, kernel: KernelView) -> None:
        self._kernel = kernel
        self._seq_files = SeqFiles()
        texts: dict[str, Callable[[Process], bytes]] = {
            "": lambda reader: "".join(f"{pid}\n" for pid in sorted(self._list())).encode(),
            "meminfo": lambda reader: show_meminfo(kernel.frames, kernel.sysctl),
            "vmstat": lambda reader: show_vmstat(kernel.frames, self._count_faults()),
            "buddyinfo": lambda reader: show_buddyinfo(kernel.frames),
            "swaps": lambda reader: show_swaps(kernel.frames),
            "kerneld/status": lambda reader: show_kerneld_status(
                kernel.frames,
                kernel.files.kept.nr_pages,
                len(kernel.processes),
                kernel.start_time,
                kernel.shadowpt.describe_session(),
            ),
            "kerneld/explanation": lambda reader: reader.explanation.encode(),
            "kerneld/tasks": lambda reader: show_tasks(self._list().values(), reader),
            "kerneld/settings": self._show_settings,
        }
        self._root: dict[str, Callable[[Process], Show]] = {
            **{name: functools.partial(_show_text, text) for name, text in texts.items()},
            "sysvipc/shm": lambda reader: functools.partial(show_sysvipc_shm, kernel.shm),
        }
        self._settings = all_settings(kernel)
        self._frame_words: dict[str, Callable[[Frames, int, int], bytes]] = {
            "kpagecount": read_kpagecount,
            "kpageflags": read_kpageflags,
        }

    def _show_settings(self, reader: Process) -> bytes:
        """Return the path of each setting that the reader may read, one a line."""
        is_root = reader.cred.superuser
        names = [name for name, setting in sorted(self._settings.items()) if setting.permits(_READ, is_root=is_root)]
        return "".join(f"{name}\n" for name in names).encode()

    def _list(self) -> Mapping[Pid, Process]:
        self._kernel.admit_children()
        return self._kernel.processes

    def _count_faults(self) -> tuple[int, int]:
        """Return the number of page faults since the machine started, and the number of major ones."""
        ended, living = self._kernel.frames.vmstat, self._kernel.processes.values()
        major = ended["pgmajfault"] + sum(process.maj_flt for process in living)
        return ended["pgfault"] + sum(process.min_flt + process.maj_flt for process in living), major

    def read(self, thread: Thread, path: str, offset: int, length: int) -> bytes:
        """Do the same as `read_in_pieces`, at once."""
        return drain(self.read_in_pieces(thread, path, offset, length))

    def read_in_pieces(self, thread: Thread, path: str, offset: int, length: int) -> Generator[None, None, bytes]:
        """Return to a thread up to `length` bytes of the file at `path`, under /proc, from `offset`; none at its end.

        Yields between pieces, so that other clients may be served. A view of much memory is not of one moment, as in
        Linux. Raises SysError(ENOENT) for an unknown path or a dead process, SysError(EISDIR) or ENOTDIR for a path
        of the wrong kind, SysError(EACCES) without the right, SysError(EINVAL) for an offset or length out of range.
        """
        names = _names(path)
        if offset > _MAX_OFFSET:
            raise SysError(errno.EINVAL)
        if names and (names[0] in ("self", "thread-self") or names[0][0].isdigit()):
            return (yield from self._read_of_process(thread, names, offset, length))
        name = "/".join(names)
        if name in _OF_ALL_MEMORY:
            # After the end of a process these files must show its memory as free, as on Linux.
            yield from self._finish_dying()
        show = self._find_show(thread.process, name)
        if show is not None:
            return (yield from self._seq_files.read(thread, name, show, offset, length))
        if name in self._frame_words:
            if not thread.process.cred.superuser:
                raise SysError(errno.EACCES)
            return self._frame_words[name](self._kernel.frames, offset, length)
        raise SysError(self._why_missing(names))

    def _find_show(self, reader: Process, name: str) -> Show | None:
        """Return the view of a file that is no process's, or None. Raises SysError(EACCES)."""
        setting = self._settings.get(name)
        if setting is None:
            return self._root[name](reader) if name in self._root else None
        if not setting.permits(_READ, is_root=reader.cred.superuser):
            raise SysError(errno.EACCES)
        return one_record(setting.show)

    def write_in_pieces(self, thread: Thread, path: str, offset: int, data: bytes) -> Stores:
        """Write to the setting at `path`, under /proc, at `offset`. Return how many bytes it has taken.

        Yields between pieces. Without data: whether the writer may open it for writing.
        Raises SysError(ENOENT) for an unknown path, SysError(EPERM) without the right and SysError(EACCES) where it is
        asked for by no data, SysError(EINVAL) for a value that the setting does not take.
        Source: Linux v6.8 fs/proc/proc_sysctl.c:proc_sys_open(), proc_sys_call_handler().
        """
        setting, is_root = self._find_setting(thread, _names(path))
        if not setting.permits(_WRITE, is_root=is_root):
            raise SysError(errno.EPERM if data else errno.EACCES)
        return (yield from setting.store(offset, data)) if data else 0

    def _find_setting(self, thread: Thread, names: list[str]) -> tuple[Setting, bool]:
        """Return a file that can be written, and whether the thread's process owns it.

        Raises SysError(ENOENT), and SysError(EACCES) for a file that cannot be written.
        """
        writer = thread.process
        name, is_root = "/".join(names), writer.cred.superuser
        found = self._settings.get(name)
        if found is None and names and names[0][0].isdigit():
            process = self._find_process(names[0])
            if process is None or process.mm is None:
                raise SysError(errno.ENOENT)
            found = process_settings(process, writer, functools.partial(self._held, thread)).get("/".join(names[1:]))
            is_root = is_root or (process.mm.dumpable and writer.cred.uid == process.cred.uid)
        if found is None:
            raise SysError(errno.EACCES if name in self._root or name in self._frame_words else errno.ENOENT)
        return found, is_root

    def _held(self, thread: Thread, mm: MmStruct, steps: Steps) -> Steps:
        """Take the steps while a thread holds an address space, after those who hold it; none if it ends meanwhile."""
        locks = self._kernel.mmap_locks
        while locks.is_locked(mm, thread):
            yield
        if not mm.is_dying:
            with locks.write(thread, mm):
                yield from steps

    def _finish_dying(self) -> Generator[None, None, None]:
        dying = self._kernel.frames.dying
        if dying is not None:
            yield from dying.finish_in_pieces()

    def _why_missing(self, names: list[str]) -> int:
        if names == ["kerneld"]:
            return errno.EISDIR
        parents = ["/".join(names[:count]) for count in range(1, len(names))]
        is_file = any(name in self._root or name in self._settings or name in self._frame_words for name in parents)
        return errno.ENOTDIR if is_file else errno.ENOENT

    def _read_of_process(
        self, thread: Thread, names: list[str], offset: int, length: int
    ) -> Generator[None, None, bytes]:
        reader = thread.process
        process = reader if names[0] in ("self", "thread-self") else self._find_process(names[0])
        if process is not None and process.mm is not None:
            yield from self._kernel.files.changes.wait_for(process.mm)
        if process is None or process.mm is None:
            raise SysError(errno.ENOENT)
        if len(names) == 1:
            raise SysError(errno.EISDIR)
        name = names[1]
        permitted = ptrace_may_access(reader, process)
        if name == "walk":
            view = one_record(self._open_walk(reader, process, names[2:], permitted=permitted))
            return (yield from self._seq_files.read(thread, "/".join(names), view, offset, length))
        show = self._open_show(reader, process, name, permitted=permitted)
        if show is None and name not in ("pagemap", "mem"):
            raise SysError(errno.ENOENT)
        if len(names) > 2:
            raise SysError(errno.ENOTDIR)
        if show is not None:
            pieces = self._seq_files.read(thread, f"{process.pid}/{name}", show, offset, length)
            return (yield from _while_it_lives(process, pieces))
        # Only its owner may open these files (mode 0400, 0600). Linux checks that first.
        if not permitted or not (process.mm.dumpable or reader.cred.capable(CAP_SYS_PTRACE)):
            raise SysError(errno.EACCES)
        if name == "mem":
            return read_mem(process.mm, offset, length)
        return read_pagemap(process.mm, offset, length, show_pfn=reader.cred.capable(CAP_SYS_ADMIN))

    def _open_walk(
        self, reader: Process, process: Process, names: list[str], *, permitted: bool
    ) -> Callable[[], bytes]:
        """Return the view of one address. It has frame numbers. Raises SysError(EACCES), ENOENT for no address."""
        may_read = permitted and (process.live_mm.dumpable or reader.cred.capable(CAP_SYS_PTRACE))
        if not may_read or not reader.cred.capable(CAP_SYS_ADMIN):
            raise SysError(errno.EACCES)
        if not names:
            raise SysError(errno.EISDIR)
        if len(names) > 1 or not set(names[0]) <= _HEX_DIGITS or int(names[0], 16) >= TASK_SIZE:
            raise SysError(errno.ENOENT)
        return functools.partial(show_walk, process.live_mm, int(names[0], 16))

    def _find_process(self, name: str) -> Process | None:
        """Return the process of a directory's name: a decimal number as Linux writes it, without leading zeros."""
        if not name.isascii() or not name.isdigit() or name[0] == "0" or len(name) > _MAX_PID_DIGITS:
            return None
        process = self._kernel.find_process(int(name))
        # A program of `kerneld run` uses its real memory, so only the host's own /proc has it.
        return None if process is not None and process.memory_is_host else process

    def _open_show(self, reader: Process, process: Process, name: str, *, permitted: bool) -> Show | None:
        """Return the view of a name in a process's directory, or None. Raises SysError(EACCES) for a private view."""
        mm, files = process.live_mm, self._kernel.files
        public: dict[str, Callable[[], bytes]] = {
            "status": lambda: show_status(process, reader),
            "stat": lambda: show_stat(process, reader, permitted=permitted),
            "statm": lambda: show_statm(process),
            "comm": lambda: show_comm(process),
            "cmdline": lambda: show_cmdline(process),
            "limits": lambda: show_limits(process),
            "oom_score": lambda: show_oom_score(process),
            "oom_score_adj": lambda: show_oom_score_adj(process),
        }
        if name in public:
            return one_record(public[name])
        private = _private_shows(process, mm, files).get(name)
        if private is not None and not permitted:
            raise SysError(errno.EACCES)
        return private


def _names(path: str) -> list[str]:
    return [name for name in path.split("/") if name not in ("", ".")]


def _show_text(render: Callable[[Process], bytes], reader: Process) -> Show:
    return one_record(functools.partial(render, reader))


def _while_it_lives(process: Process, pieces: Generator[None, None, bytes]) -> Generator[None, None, bytes]:
    """Continue a view of a process's memory. Raises SysError(ESRCH) if the process has ended, as Linux's m_start()."""
    mm = process.mm
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            data: bytes = end.value
            return data
        yield
        if process.mm is not mm:
            raise SysError(errno.ESRCH)


def _private_shows(process: Process, mm: MmStruct, files: FileTable) -> dict[str, Show]:
    return {
        "personality": one_record(lambda: show_personality(process)),
        "maps": functools.partial(show_maps, mm, files),
        "smaps": functools.partial(show_smaps, mm, files),
        "smaps_rollup": functools.partial(show_smaps_rollup, mm),
        "ksm_merging_pages": one_record(lambda: show_ksm_merging_pages(mm)),
        "ksm_stat": one_record(lambda: show_ksm_stat(mm)),
    }
