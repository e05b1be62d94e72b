"""A panic's dump: what the machine was like when an invariant broke, as one JSON file beside the socket.

Owns the format of the dump. Nothing here may fail for a broken machine: each part is described on its own, and one that
cannot be is said to be so. Answers to what Linux's kdump is for.
"""

from __future__ import annotations

import functools
import json
import os
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any

from kerneld.server.socket_path import Claim
from kerneld.syscalls.answer import Call
from kerneld.syscalls.kernel import Kernel
from kerneld.syscalls.table import find_name
from kerneld.task.task import Process
from shared.uapi.dump import DUMP_FORMAT, dump_name

MOST_VMAS = 256
"""Of one process: the rest are counted."""


def write_dump(kernel: Kernel, error: BaseException, held: Claim) -> str:
    """Write the dump of a machine that `error` has ended; returns its path. Raises OSError."""
    name = dump_name(os.path.basename(held.path))
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(name, flags, 0o600, dir_fd=held.directory_fd)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        json.dump(describe_panic(kernel, error), file, indent=1)
        file.write("\n")
    return os.path.join(os.path.dirname(held.path), name)


def describe_panic(kernel: Kernel, error: BaseException) -> dict[str, Any]:
    """Return the dump as JSON has it."""
    return {
        "format": DUMP_FORMAT,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "pid": os.getpid(),
        "why": f"{type(error).__name__}: {error}",
        "traceback": traceback.format_exception(error),
        "request": _try(lambda: _describe_request(error.__traceback__)),
        "frames": _try(lambda: _describe_frames(kernel)),
        "shadow_table": _try(kernel.shadowpt.describe_session),
        "processes": [_try(functools.partial(_describe_process, process)) for process in _processes(kernel)],
    }


def _try(describe: Callable[[], Any]) -> Any:
    try:
        return describe()
    except Exception as error:
        return {"cannot be described": f"{type(error).__name__}: {error}"}


def _processes(kernel: Kernel) -> list[Process]:
    return list(kernel.processes.values())


def _describe_request(at: TracebackType | None) -> dict[str, Any] | None:
    """Return the request that was being run: the traceback has it, so that no request need be noted before it runs."""
    found = None
    while at is not None:
        call, nr = at.tb_frame.f_locals.get("call"), at.tb_frame.f_locals.get("nr")
        if isinstance(call, Call) and isinstance(nr, int):
            found = {
                "call": find_name(nr),
                "args": [hex(arg) for arg in call.args],
                "inline_bytes": len(call.data),
                "pid": call.process.pid,
                "tid": call.thread.tid,
            }
        at = at.tb_next
    return found


def _describe_frames(kernel: Kernel) -> dict[str, Any]:
    frames = kernel.frames
    return {
        "total_pages": frames.total_pages,
        "free_pages": frames.free_pages,
        "free_blocks": list(frames.buddy.nr_blocks),
        "referenced": int((frames.refcount > 0).sum()),
        "mapped": int((frames.mapcount > 0).sum()),
    }


def _describe_process(process: Process) -> dict[str, Any]:
    mm = process.mm
    vmas = [] if mm is None else [repr(vma) for vma in mm.vmas]
    return {
        "pid": process.pid,
        "uid": process.cred.uid,
        "superuser": process.cred.superuser,
        "comm": process.comm,
        "tids": [thread.tid for thread in process.threads],
        "page_table_root": None if mm is None else hex(mm.page_table.root),
        "total_vm_pages": None if mm is None else mm.total_vm,
        "resident_pages": None if mm is None else int(mm.resident_pages),
        "vma_count": len(vmas),
        "vmas": vmas[:MOST_VMAS],
    }
