"""Sets the name of this process for ps, traces and kerneld: the program's name, not the interpreter's."""

from __future__ import annotations

import contextlib
from pathlib import Path


def set_process_name(name: str) -> None:
    """Give this process the name `name`; the kernel keeps 15 bytes of it. Source: prctl(2), PR_SET_NAME."""
    # Without /proc the process keeps the interpreter's name. That does no harm.
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(name, encoding="utf-8")
