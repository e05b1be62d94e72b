"""Opens the shadow table of a target in this process's own memory, reads it, and closes it.

Owns the real memory that the table is mapped over. Knows the client library, and no terminal. Reading the table makes
no call: the kernel writes the table, and this process reads its own memory.
"""

from __future__ import annotations

import errno
import select
from pathlib import Path
from types import TracebackType
from typing import Protocol

from inspector.address import Span
from inspector.failure import InspectorStatus
from inspector.table import Entry, parse_table
from shared.client import KerneldGone, realmem
from shared.failure import Failure, Status
from shared.proc_maps import Mapping, parse_maps
from shared.real_process import no_process
from shared.terminal import one_line
from shared.uapi.page import PAGE_MASK, PAGE_SIZE
from shared.uapi.shadowpt import MAX_SPT_RANGE, Spte, table_bytes

PAGE_ATTEMPTS = 16
"""How often a page is read again because its frame changed between reading the table and reading the page."""
NO_PFNS = "the host shows kerneld no frame numbers, which takes root; every pfn is 0, the flags are right"
_MISSING = (errno.ESRCH, errno.ENOENT)
SNAPSHOT_ATTEMPTS = 100
SNAPSHOT_PAUSE = 0.01
"""The number of new attempts to read a table that the kernel is changing, and the seconds between them."""


class Machine(Protocol):
    """The part of `shared.client.Process` that the inspector uses."""

    def fileno(self) -> int: ...
    def read_proc(self, path: str) -> bytes: ...
    def shadowpt_open(self, target: int, start: int, end: int, entries: int, *, host: bool) -> tuple[int, int]: ...
    def shadowpt_start(self) -> None: ...
    def shadowpt_close(self) -> None: ...
    def shadowpt_page_contents(self, pfn: int) -> bytes: ...
    def snapshot(self) -> bytes: ...


def read_maps(machine: Machine, pid: int) -> list[Mapping]:
    """Return the mappings of process `pid`: kerneld's, or the host's if kerneld has no such process.

    Raises Failure(NO_PROCESS), Failure(NOT_PERMITTED).
    """
    try:
        maps = machine.read_proc(f"{pid}/maps")
    except OSError as error:
        if error.errno not in _MISSING:
            raise _failure(error, machine, pid) from None
        try:
            maps = _read_host_maps(pid)
        except PermissionError:
            raise _not_to_be_seen(pid) from None
        if not maps:
            raise _failure(error, machine, pid) from None
    return parse_maps(maps.decode(errors="surrogateescape"))


def has_process(machine: Machine, pid: int) -> bool:
    """Whether kerneld has a process `pid`, or the host has one with memory."""
    try:
        machine.read_proc(f"{pid}/stat")
    except OSError as error:
        if error.errno not in _MISSING:
            return True
        try:
            return bool(_read_host_maps(pid))
        except PermissionError:
            return False
    return True


def _read_host_maps(pid: int) -> bytes:
    """Return the maps of a real process; empty if there is no such process, or it is a zombie.

    Raises PermissionError if this user may not read them.
    """
    try:
        return Path(f"/proc/{pid}/maps").read_bytes()
    except PermissionError:
        raise
    except OSError:
        return b""


def _not_to_be_seen(pid: int) -> Failure:
    return Failure(
        Status.NOT_PERMITTED,
        f"process {pid} is none of kerneld's and may not be looked at: it is another user's, or a thread, or kerneld "
        "runs with --no-host-targets",
    )


class Watch:
    """The shadow table of [start, end) of process `pid`: open and tracking inside a with block, closed after it.

    `span` is page-aligned. The kernel cuts a range longer than MAX_SPT_RANGE; `span` is then the shorter range.
    Entering raises Failure(NO_PROCESS), Failure(NOT_PERMITTED) or Failure(BUSY).
    """

    def __init__(self, machine: Machine, pid: int, span: Span) -> None:
        self.machine = machine
        self.pid = pid
        self.span = span
        self._length = table_bytes(span.start, min(span.end, span.start + MAX_SPT_RANGE))
        self._entries = 0

    def __enter__(self) -> Watch:
        # The memory is untouched, as shadowpt_open demands.
        self._entries = realmem.map_anonymous(self._length)
        try:
            self.span = Span(
                *self.machine.shadowpt_open(self.pid, self.span.start, self.span.end, self._entries, host=True)
            )
        except OSError as error:
            realmem.unmap(self._entries, self._length)
            raise _failure(error, self.machine, self.pid) from None
        self.machine.shadowpt_start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.machine.shadowpt_close()
        realmem.unmap(self._entries, self._length)

    def read(self) -> list[Entry]:
        """Return the entries of one moment, without a call.

        Raises KerneldGone when the connection has ended in the middle of a change, and Failure(FAILED) when the changes
        do not stop.
        """
        for _attempt in range(SNAPSHOT_ATTEMPTS):
            try:
                return parse_table(self.machine.snapshot(), self.span.start, self.span.end)
            except TimeoutError:
                # If kerneld was killed during a change, the sequence number stays odd.
                if select.select([self.machine.fileno()], [], [], SNAPSHOT_PAUSE)[0]:
                    raise KerneldGone("kerneld ended while it was changing the table") from None
        raise Failure(Status.FAILED, "kerneld changes the table too fast to read it")

    def read_page(self, vaddr: int) -> tuple[Entry, bytes]:
        """Return the entry and the 4,096 bytes of the page that holds `vaddr`, an address within the range.

        Raises Failure(NOT_MAPPED) when the page has no frame.
        """
        index = ((vaddr & PAGE_MASK) - self.span.start) // PAGE_SIZE
        for _attempt in range(PAGE_ATTEMPTS):
            entry = self.read()[index]
            if not entry.flags & Spte.PTE_MAPPED:
                allocated = "allocated, but" if entry.flags & Spte.VADDR_ALLOCATED else "not allocated and"
                raise Failure(
                    InspectorStatus.NOT_MAPPED,
                    f"page {vaddr & PAGE_MASK:#x} of process {self.pid} is {allocated} has no frame",
                )
            if not entry.pfn:
                raise Failure(Status.NOT_PERMITTED, f"page {entry.vaddr:#x} cannot be read: {NO_PFNS}")
            try:
                return entry, self.machine.shadowpt_page_contents(entry.pfn)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise _failure(error, self.machine, self.pid) from None
        raise Failure(
            InspectorStatus.NOT_MAPPED,
            f"page {vaddr & PAGE_MASK:#x} of process {self.pid} does not keep a frame for long enough",
        )


def _failure(error: OSError, machine: Machine, pid: int) -> Failure:
    """Return the Failure for an errno of the kernel."""
    if error.errno in _MISSING:
        return Failure(Status.NO_PROCESS, no_process(pid))
    if error.errno in (errno.EPERM, errno.EACCES):
        return Failure(
            Status.NOT_PERMITTED,
            f"not permitted to look into process {pid}: only root and the user running kerneld may",
        )
    if error.errno == errno.EBUSY:
        why = _explanation(machine) or "another inspector has a table open, and there is one at a time"
        return Failure(InspectorStatus.BUSY, f"busy: {why}")
    if error.errno == errno.EINVAL and _is_real_alone(machine, pid):
        return _not_to_be_seen(pid)
    if error.errno == errno.EINVAL and not has_process(machine, pid):
        return Failure(Status.NO_PROCESS, no_process(pid))
    return Failure(Status.FAILED, f"kerneld refuses: {_explanation(machine) or error.strerror}")


def _explanation(machine: Machine) -> str:
    """Return kerneld's explanation of the call that it has just refused."""
    try:
        return one_line(machine.read_proc("kerneld/explanation").decode("utf-8", "replace"))
    except OSError:
        return ""


def _is_real_alone(machine: Machine, pid: int) -> bool:
    """Whether `pid` is a process of the host that is not attached to kerneld."""
    try:
        machine.read_proc(f"{pid}/stat")
    except OSError as error:
        return error.errno in _MISSING and Path(f"/proc/{pid}").exists()
    return False
