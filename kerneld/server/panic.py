"""The dump of a panic: the state of the machine when an invariant broke, as one JSON file beside the socket.

Owns the format of the dump. The dump must not fail because the machine is broken: each part is described separately. A
part that cannot be described gets the error as its text. It has the purpose of Linux's kdump.
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
"""The most VMAs of one process in a dump; the dump has the number of the others."""


def write_dump(kernel: Kernel, error: BaseException, held: Claim) -> str:
    """Write the dump of a machine that `error` has broken, and return its path. Raises OSError."""
    name = dump_name(os.path.basename(held.path))
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(name, flags, 0o600, dir_fd=held.directory_fd)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        json.dump(describe_panic(kernel, error), file, indent=1)
        file.write("\n")
    return os.path.join(os.path.dirname(held.path), name)


def describe_panic(kernel: Kernel, error: BaseException) -> dict[str, Any]:
    """Return the dump as an object for JSON."""
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
    """Return the request that was running.

    It comes from the traceback, so that the kernel need not note each request.
    """
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
        "resident_pages": None if mm is None else int(mm.rss.resident_pages),
        "vma_count": len(vmas),
        "vmas": vmas[:MOST_VMAS],
    }
