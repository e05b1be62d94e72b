"""The name that this process has for ps, for traces and for kerneld: the program's, not its interpreter's."""

from __future__ import annotations

import contextlib
from pathlib import Path


def set_process_name(name: str) -> None:
    """Give this process the name `name`, of which 15 bytes count. Source: prctl(2), PR_SET_NAME."""
    # Without /proc it keeps the interpreter's name, which does no harm.
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(name, encoding="utf-8")
