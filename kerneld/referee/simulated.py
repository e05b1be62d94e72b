"""kerneld's side: runs the program's processes in a kernel inside this process, through `dispatch`.

Owns the kernel and its processes. It also maps memory at the places of the host's runner, so that both sides have the
same free addresses. There is no socket and no real process.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from signal import SIGBUS, SIGILL, SIGSEGV

import numpy as np

from kerneld.errors import KernelBug, SysError
from kerneld.fs.proc_array import show_stat, show_statm, show_status
from kerneld.fs.proc_maps import show_maps
from kerneld.fs.proc_page import stable_page_flags
from kerneld.fs.proc_pagemap import read_pagemap
from kerneld.fs.proc_smaps import show_smaps, show_smaps_rollup
from kerneld.fs.proc_vmstat import show_meminfo, show_vmstat
from kerneld.fs.seq_file import START, Records
from kerneld.mm.calls.fork import dup_mmap
from kerneld.mm.calls.mmap import do_mmap
from kerneld.mm.space.mm import MmStruct
from kerneld.referee import this_host
from kerneld.referee.errors import HostError
from kerneld.referee.facts import HostFacts
from kerneld.referee.files import ProgramFiles, cut_page
from kerneld.referee.host_swap import SWAP_BYTES
from kerneld.referee.machine import Counters
from kerneld.referee.mode import Mode
from kerneld.referee.numbers import ProcTexts, parse_maps, parse_smaps, since, totals
from kerneld.referee.outcome import Mapping, Outcome, View, add_pages, near_together, windows, words_of
from kerneld.referee.program_machine import Pipes, ProgramMachine
from kerneld.referee.this_host import Notices
from kerneld.syscalls.answer import Answer
from kerneld.syscalls.dispatch import dispatch
from kerneld.syscalls.kernel import KernelConfig
from kerneld.task.exec import fresh_mm
from kerneld.task.exit import do_group_exit
from kerneld.task.task import Cred, Process, Thread
from shared.uapi.mman import Map, Prot
from shared.uapi.native import STUB_END, STUB_START
from shared.uapi.page import PAGE_SHIFT
from shared.uapi.resource import Rlimit
from shared.uapi.signals import Disposition
from shared.uapi.syscalls import Access, Nr
from shared.wire import Request

RAM_BYTES = (1 << 30) + (64 << 20)
"""More than a GiB: a stack may grow a GiB down to the arena, and a fork promises such a stack as a whole."""
_RUNNER = -1
"""In place of a process's number: the one from which number 0 is forked."""
_pids = itertools.count(1 << 22).__next__
"""Pids above any real pid: Linux's PID_MAX_LIMIT."""
_WORD = (1 << 64) - 1


class Simulated:
    """The machine, for one program after another."""

    def __init__(
        self,
        folder: Path,
        facts: HostFacts,
        *,
        check_invariants: bool = False,
        pku: bool | None = None,
    ) -> None:
        """Only this side uses `folder`. `pku` says whether the processor has protection keys; default: as on the host.

        Raises HostError without inotify, which reports truncations.
        """
        self._folder = folder
        self._facts = facts
        self._layout = facts.layout
        config = KernelConfig(
            RAM_BYTES,
            superuser_uid=0,
            swap_bytes=SWAP_BYTES if facts.mode is Mode.SWAP else 0,
            check_invariants=check_invariants,
            sysctl=facts.sysctl,
            pku=facts.has_pkeys if pku is None else pku,
        )
        self.kernel = ProgramMachine(config)
        if self.kernel.file_changes_fd < 0:
            self.kernel.shutdown()
            raise HostError(
                "no inotify instance is left for this user, by which kerneld is told of truncation"
                " (fs.inotify.max_user_instances); end programs that have some"
            )
        self._cred = Cred(facts.uid, facts.gid, facts.is_superuser)
        self._free_pages = self.kernel.frames.free_pages
        self.threads: dict[int, Thread] = {}
        self.kernel.pipe_watch = self._pipes = Pipes()
        self._userfaultfds: list[int] = []
        self._files = ProgramFiles(folder)
        self._start_totals: dict[str, int] = {}
        self._used_at_start: dict[int, int] = {}

    def prepare_files(self, numbers: set[int]) -> None:
        """Open the files of a program. Their cached pages are kept until the program's end, as in Linux."""
        for number in sorted(numbers):
            self.kernel.hold(os.dup(self._files.get_fd(number)))

    def check_invariants(self, wanted: bool) -> None:
        """Switch the check of all invariants after every call on or off."""
        self.kernel.config = dataclasses.replace(self.kernel.config, check_invariants=wanted)

    def start(self) -> None:
        """Begin a program, with one process, number 0: a child of the runner."""
        mm = fresh_mm(self.kernel.frames, self._facts.rlimits(), self.kernel.sysctl)
        mm.start_brk = mm.brk = self._layout.brk
        mm.end_data = self._layout.data_bytes
        if self._facts.is_kerneld:
            mm.reserved = STUB_START, STUB_END
        for start, end in self._layout.taken:
            flags = (Map.FIXED | Map.SHARED | Map.ANONYMOUS).value
            do_mmap(mm, start, end - start, Prot.READ.value, flags, None, 0, privileged=True)
        self._add(_RUNNER, Process(_pids(), self._cred, mm, "program", time.monotonic()))
        self._touch(_RUNNER)
        # As on the host, where a stack's chain of anon_vmas has two then: no new mapping merges with it.
        self.fork(_RUNNER, 0)
        self.exit(_RUNNER)
        self._touch(0)
        mm = self.threads[0].process.live_mm
        self._start_totals = self._totals(0)
        self._used_at_start = {Rlimit.AS: mm.total_vm << PAGE_SHIFT, Rlimit.DATA: mm.data_vm << PAGE_SHIFT}

    def _touch(self, who: int) -> None:
        """Touch the pages of the runner that a program has from the start."""
        self._touch_taken(who)
        self._call(who, Nr.TOUCH, (self.threads[who].process.live_mm.start_stack, 1, Access.WRITE))

    def _touch_taken(self, who: int) -> None:
        """Touch the pages of the runner's places, so that both sides have the page tables that the program shares."""
        for start, _ in self._layout.taken:
            self._call(who, Nr.TOUCH, (start, 1, 0))

    def _add(self, who: int, process: Process) -> None:
        process.dispositions = dict.fromkeys((SIGSEGV, SIGBUS, SIGILL), Disposition.CAUGHT)
        self.kernel.table.add(process)
        thread = Thread(process.pid, process)
        process.threads.append(thread)
        self.threads[who] = thread

    def end(self) -> None:
        """End the program's processes. Raises KernelBug if frames are missing afterwards."""
        for thread in self.threads.values():
            do_group_exit(thread, 0)
        self.kernel.take_ended()
        self.threads.clear()
        self._close_userfaultfds()
        self.kernel.let_go()
        self._files.close()
        if self.kernel.frames.free_pages != self._free_pages:
            raise KernelBug(f"{self._free_pages - self.kernel.frames.free_pages} frames have leaked")

    def _close_userfaultfds(self) -> None:
        for fd in self._userfaultfds:
            os.close(fd)
        self._userfaultfds.clear()
        for pipe in list(self._pipes.watched):
            self.kernel.userfaultfds.reader_gone(pipe)

    def fork(self, who: int, child: int) -> Outcome:
        """Copy a process, as `clone` and the child's attach do together."""
        parent = self.threads[who].process
        try:
            mm = dup_mmap(parent.live_mm)
        except SysError as error:
            return Outcome(-error.errno)
        self._add(child, Process(_pids(), parent.cred, mm, parent.comm, time.monotonic()))
        self.threads[child].pkru = self.pkru(who)
        self._touch_taken(child)
        return Outcome(0)

    def exit(self, who: int) -> Outcome:
        """End a process."""
        self._call(who, Nr.EXIT_GROUP, (0,))
        del self.threads[who]
        self.kernel.take_ended()
        return Outcome(0)

    def truncate(self, file: int, length: int, *, writes_cut: bool = False) -> Outcome:
        """Set a file's size, and with `writes_cut` write the page that was cut (`cut_page`).

        The same size is reported too: inotify cannot tell it from a write.
        """
        before = os.fstat(self._files.get_fd(file)).st_size
        outcome = Outcome(self._files.truncate(file, length))
        self.kernel.files_changed()
        if length == before and not outcome.ret:
            this_host.truncated_to_its_size(self.kernel.find_held(self._files.get_fd(file)), length)
        page = cut_page(before, length)
        if writes_cut and page is not None and not outcome.ret:
            this_host.write_cut(self.kernel.find_held(self._files.get_fd(file)), page)
        return outcome

    def add_seals(self, file: int, seals: int) -> Outcome:
        """Seal a file."""
        return Outcome(self._files.add_seals(file, seals))

    def process_madvise(self, who: int, peer: int, iovec: bytes, advice: int, flags: int) -> Outcome:
        """Advise a process's memory; for an ended process the descriptor is no pidfd."""
        fds = [] if peer in self.threads else [os.open("/dev/null", os.O_RDONLY)]
        return self._call(who, Nr.PROCESS_MADVISE, (self.pid(peer), 0, 1, advice, flags), iovec, fds)

    def clear_refs(self, who: int, peer: int, text: bytes) -> Outcome:
        """Write to clear_refs of a process."""
        path = f"{self.pid(peer)}/clear_refs".encode()
        return self._call(who, Nr.PROCWRITE, (0, len(path)), path + text)

    def call(self, who: int, nr: int, args: tuple[int, ...], file: int = -1, data: bytes = b"") -> Outcome:
        """Make a system call."""
        fds = [os.dup(self._files.get_fd(file))] if file >= 0 else []
        outcome = self._call(who, nr, args, data, fds)
        return outcome._replace(data=outcome.data if nr in (Nr.MINCORE, Nr.SHMCTL) else b"")

    def pkru(self, who: int) -> int:
        """Return the register PKRU of a process."""
        rq, thread = self.kernel.rq, self.threads[who]
        return rq.processor.pkru if rq.curr is thread else thread.pkru

    def prlimit(self, who: int, peer: int, resource: int, limits: bytes) -> Outcome:
        """Set a process's soft and hard limit of a resource."""
        return self._call(who, Nr.PRLIMIT64, (self.pid(peer), resource, 1, 0), limits)

    def used_at_start(self, resource: int) -> int:
        """Return the bytes of a resource in use at the start of the program."""
        return self._used_at_start[resource]

    def userfaultfd(self, who: int, flags: int) -> Outcome:
        """Make a userfaultfd for a process. The outcome is its descriptor."""
        answer = self._dispatch(who, Nr.USERFAULTFD, (flags,))
        self._userfaultfds += answer.fds
        return Outcome(answer.fds[0] if answer.fds else answer.ret)

    def ioctl(self, who: int, fd: int, command: int, record: bytes) -> Outcome:
        """Make an ioctl of a process. The data of the outcome are the record as it is then."""
        outcome = self._call(who, Nr.IOCTL, (fd, command, 0), record, [os.dup(fd)])
        return outcome._replace(data=outcome.data or record)

    def together(self, _who: int, calls: Iterable[Callable[[], Outcome]]) -> list[Outcome]:
        """Make several calls of a process, one after another."""
        return [call() for call in calls]

    def pid(self, who: int) -> int:
        """Return a process's pid; for an ended process a pid that no process has."""
        return self.threads[who].process.pid if who in self.threads else (1 << 22) - 1

    def load(self, who: int, vaddr: int, length: int) -> Outcome:
        """Read memory."""
        return self._access(who, Nr.LOAD, (vaddr, length))

    def store(self, who: int, vaddr: int, length: int, data: bytes) -> Outcome:
        """Write memory: `data` again and again."""
        return self._access(who, Nr.STORE, (vaddr, length), (data * (length // len(data) + 1))[:length])

    def touch(self, who: int, vaddr: int, length: int, access: int) -> Outcome:
        """Access a byte of each page."""
        return self._access(who, Nr.TOUCH, (vaddr, length, access))

    def wrpkru(self, who: int, value: int) -> Outcome:
        """Set PKRU of a process. SIGILL on a processor without protection keys."""
        return self._call(who, Nr.WRPKRU, (value,))

    def _access(self, who: int, nr: int, args: tuple[int, ...], data: bytes = b"") -> Outcome:
        process = self.threads[who].process
        before, notices = process.min_flt, Notices.count
        outcome = self._call(who, nr, args, data)
        return outcome._replace(min_flt=process.min_flt - before - (Notices.count - notices))

    def _call(
        self, who: int, nr: int, args: tuple[int, ...], data: bytes = b"", fds: list[int] | None = None
    ) -> Outcome:
        answer = self._dispatch(who, nr, args, data, fds)
        info = answer.siginfo
        if info is not None:
            if info.pkru is not None and not info.fatal:
                self.kernel.rq.processor.wrpkru(info.pkru)
            pkru = self.pkru(who)
            return Outcome(answer.ret, answer.signo, info.si_code, info.si_addr, si_pkey=info.si_pkey, pkru=pkru)
        return Outcome(answer.ret, data=answer.data, pkru=self.pkru(who))

    def _dispatch(
        self, who: int, nr: int, args: tuple[int, ...], data: bytes = b"", fds: list[int] | None = None
    ) -> Answer:
        # As on the wire: words without a sign.
        a, b, c, d, e, f, *_ = (arg & _WORD for arg in (*args, 0, 0, 0, 0, 0, 0))
        left = fds if fds is not None else []
        answer = dispatch(self.kernel, self.threads[who], Request(nr, (a, b, c, d, e, f), data), left)
        for fd in left:
            os.close(fd)
        return answer

    def view(self, who: int, *, whole: bool = True) -> View:
        """Return the state of a process's memory, or the part of it that is compared after every operation."""
        process = self.threads[who].process
        mm = process.mm
        if mm is None:
            # The process has ended unexpectedly. The outcome has the reason.
            return View((), {}, {})
        mappings, own = self._mappings(mm, whole=whole)
        pages: dict[int, int] = {}
        frames: dict[int, int] = {}
        places = [place for mapping in mappings for place in windows(mapping.start, mapping.end)]
        ranges = near_together(places)
        read = (read_pagemap(mm, low >> 9, (high - low) >> 9, show_pfn=whole) for low, high in ranges)
        for start, words in words_of(places, ranges, read):
            add_pages(words, start, pages, frames)
        found = since(totals(self._texts(process, whole=whole), own), self._start_totals)
        return View(tuple(mappings), pages, frames, found, self._page_flags(frames))

    def _mappings(self, mm: MmStruct, *, whole: bool) -> tuple[list[Mapping], list[Mapping]]:
        """Return the program's mappings, and those at the places of the host's runner."""
        files = self.kernel.files
        found = (
            parse_smaps(_whole(show_smaps(mm, files, START)))
            if whole
            else parse_maps(_whole(show_maps(mm, files, START)))
        )
        own = [mapping for mapping in found if self._layout.is_taken(mapping)]
        return [mapping for mapping in found if not self._layout.is_taken(mapping)], own

    def counters(self) -> Counters:
        """Return the counters of the whole machine."""
        kernel = self.kernel
        processes = [thread.process for thread in self.threads.values()]
        major = sum(each.maj_flt for each in processes)
        faults = sum(each.min_flt for each in processes) + major + kernel.frames.vmstat["pgfault"], major
        vmstat = show_vmstat(kernel.frames, faults)
        return Counters(vmstat, show_meminfo(kernel.frames, kernel.sysctl), uncompared_faults=Notices.count)

    def _page_flags(self, frames: dict[int, int]) -> dict[int, int]:
        pfns = np.fromiter(frames.values(), dtype=np.int64, count=len(frames))
        return dict(zip(frames, stable_page_flags(self.kernel.frames, pfns).tolist(), strict=True))

    def _texts(self, process: Process, *, whole: bool = True) -> ProcTexts:
        return ProcTexts(
            _whole(show_smaps_rollup(process.live_mm, START)) if whole else b"",
            show_status(process, process),
            show_statm(process),
            show_stat(process, process, permitted=True),
        )

    def _totals(self, who: int) -> dict[str, int]:
        process = self.threads[who].process
        return totals(self._texts(process), self._mappings(process.live_mm, whole=True)[1])

    def close(self) -> None:
        """Shut down the machine."""
        self.kernel.shutdown()


def _whole(records: Records) -> bytes:
    return b"".join(record[1] for record in records if record is not None)
