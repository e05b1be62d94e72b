"""Our inspector: a process that opens tables of the submission's target when it is told so. It prints nothing.

What the table shows is known from the kernel's events. The process has the programs' user: kerneld looks into whoever
opens, and may look into its own user's processes only.
"""

from __future__ import annotations

import ctypes
import os
import socket
import time
from typing import NoReturn

from kerneld.commands.grade.cell.room import Room
from shared.client import Process, realmem
from shared.trace.record import Record
from shared.uapi.shadowpt import MAX_SPT_RANGE, Spte, table_bytes
from shared.uapi.syscalls import Nr

_QUIET_SECONDS = 2.5
_RETRY_SECONDS = 0.5
_REPLY_BYTES = 1024
_PR_SET_DUMPABLE = 4
_MAPPED = Spte.PTE_MAPPED.value
Range = tuple[int, int]


class OurInspector:
    """The process, the range of its table, and when frames came and went in it."""

    def __init__(self, room: Room, socket_path: str) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pid = os.fork()
        if self._pid == 0:
            self._ours.close()
            _become_inspector(room, theirs, socket_path)
        theirs.close()
        self._tried_at = -_QUIET_SECONDS
        self.range: Range | None = None
        self.refusal = ""
        self.gained: list[int] = []
        """When frames came, in nanoseconds."""
        self.lost: list[int] = []

    def follow(self, pid: int, bounds: Range) -> None:
        """Have a table of these bounds open, unless there is one in which something has happened, or might still."""
        waited = time.monotonic() - self._tried_at
        if self.range == bounds or waited < (_RETRY_SECONDS if self.range is None else _QUIET_SECONDS):
            return
        if self.range is not None and self.gained:
            return
        self._tried_at = time.monotonic()
        start, end = bounds
        self._ours.sendall(f"{pid} {start} {min(end, start + MAX_SPT_RANGE)}".encode())
        answer = self._ours.recv(_REPLY_BYTES).decode("utf-8", "replace")
        self.range, self.refusal = (bounds, "") if answer == "ok" else (None, f"{start:#x} to {end:#x}: {answer}")

    def add(self, record: Record) -> None:
        """Take a change of the table over. What `start` fills in is no change of the target's."""
        if record.nr == Nr.SHADOWPT_START:
            return
        fields = record.fields
        if (fields["old_flags"] ^ fields["new_flags"]) & _MAPPED or fields["old_pfn"] != fields["new_pfn"]:
            (self.gained if fields["new_flags"] & _MAPPED else self.lost).append(record.time)

    def end(self) -> None:
        """Have the process end, which closes its table."""
        self._ours.close()
        os.waitpid(self._pid, 0)


def _become_inspector(room: Room, channel: socket.socket, socket_path: str) -> NoReturn:
    try:
        room.become_program()
        # After a change of the user Linux lets nobody look into a process, not even its own user (commit_creds()).
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)
        with Process.attach(socket_path) as process:
            _serve(process, channel)
    finally:
        os._exit(0)


def _serve(process: Process, channel: socket.socket) -> None:
    is_open = False
    while order := channel.recv(_REPLY_BYTES):
        pid, start, end = map(int, order.split())
        try:
            if is_open:
                process.shadowpt_close()
                is_open = False
            # Fresh memory each time: entries that were touched are refused.
            process.shadowpt_open(pid, start, end, realmem.map_anonymous(table_bytes(start, end)))
            is_open = True
            process.shadowpt_start()
            answer = "ok"
        except OSError as error:
            why = process.procread("kerneld/explanation").decode("utf-8", "replace").strip()
            answer = f"{error.strerror}: {why}"
        channel.sendall(answer.encode()[:_REPLY_BYTES])
