"""Files of a process that it, or its user, writes: /proc/PID/clear_refs and oom_score_adj. And oom_score, which tells.

Answers to Linux v6.8 fs/proc/task_mmu.c:clear_refs_write(), fs/proc/base.c: oom_score_adj_write(), __set_oom_adj(),
proc_oom_score().
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from functools import partial

from kerneld.errors import SysError
from kerneld.fs.setting import INT_MAX, Setting, Stores
from kerneld.mm.calls.clear_refs import ClearRefs, clear_refs
from kerneld.mm.reclaim.oom import OOM_SCORE_ADJ_MIN, oom_badness, total_of
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.pace import Steps
from kerneld.task.capability import CAP_SYS_RESOURCE
from kerneld.task.task import Process

_MOST_BYTES = 12
"""Of what is written; the rest is not taken (Linux: PROC_NUMBUF)."""
_INT = re.compile(rb"[+-]?(0[xX][0-9a-fA-F]+|[0-9]+)")
_SPACES = b" \t\n\v\f\r"
_OOM_SCORE_ADJ_MAX = 1000
Held = Callable[[MmStruct, Steps], Steps]
"""Returns the pieces of a call with mmap_lock of an address space held for writing, after a wait for it."""


def process_settings(process: Process, writer: Process, held: Held) -> dict[str, Setting]:
    """Return the files of a process by name, as one writes them. Its owner has the rights of root."""
    return {
        "clear_refs": Setting(bytes, partial(_store_clear_refs, process, held), 0o200),
        "oom_score_adj": Setting(partial(show_oom_score_adj, process), partial(_store_oom_score_adj, process, writer)),
    }


def show_oom_score_adj(process: Process) -> bytes:
    """Return what its user, or root, has added to the score of a process."""
    return f"{process.oom_score_adj}\n".encode()


def show_oom_score(process: Process) -> bytes:
    """Return how much the OOM killer would like to kill a process: 0 for never, some 667 for a small one."""
    mm = process.live_mm
    if process.oom_score_adj == OOM_SCORE_ADJ_MIN:
        return b"0\n"
    total = total_of(mm.frames)
    points = oom_badness(mm) + process.oom_score_adj * (total // 1000)
    # C divides towards 0.
    share = abs(points) * 1000 // total * (1 if points >= 0 else -1)
    return f"{max(1000 + share, 0) * 2 // 3}\n".encode()


def _parse(data: bytes, base: int) -> int:
    """Return the number of a text (Linux: kstrtoint(strstrip())). Raises SysError(EINVAL), SysError(ERANGE)."""
    text = data[:_MOST_BYTES].split(b"\0")[0].strip(_SPACES)
    if not _INT.fullmatch(text):
        raise SysError(errno.EINVAL)
    sign, digits = (-1 if text[:1] == b"-" else 1), text.lstrip(b"+-")
    if not base:
        base = 16 if digits[1:2] in (b"x", b"X") else 8 if digits[:1] == b"0" else 10
    try:
        value = sign * int(digits, base)
    except ValueError:
        raise SysError(errno.EINVAL) from None
    if not -INT_MAX - 1 <= value <= INT_MAX:
        raise SysError(errno.ERANGE)
    return value


def _store_clear_refs(process: Process, held: Held, _offset: int, data: bytes) -> Stores:
    kind = _parse(data, 10)
    if kind not in ClearRefs.__members__.values():
        raise SysError(errno.EINVAL)
    mm = process.live_mm
    steps = clear_refs(mm, ClearRefs(kind))
    yield from held(mm, steps) if kind == ClearRefs.SOFT_DIRTY else steps
    return min(len(data), _MOST_BYTES)


def _store_oom_score_adj(process: Process, writer: Process, _offset: int, data: bytes) -> Stores:
    """Below the lowest value that a privileged process has set, only a privileged one may set it."""
    yield from ()
    value, may = _parse(data, 0), writer.cred.capable(CAP_SYS_RESOURCE)
    if not OOM_SCORE_ADJ_MIN <= value <= _OOM_SCORE_ADJ_MAX:
        raise SysError(errno.EINVAL)
    if value < process.oom_score_adj_min and not may:
        raise SysError(errno.EACCES)
    process.oom_score_adj = value
    if may:
        process.oom_score_adj_min = value
    return min(len(data), _MOST_BYTES)
