"""A daemon whose clients are out for harm: that it kills one for want of memory is no complaint, but counted."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from tests.support.raw import RawThread
from tests.support.watched_daemon import Daemon

OOM_KILL = "Out of memory: Killed process"


class HostileDaemon(Daemon):
    """A real daemon without invariants, since so much is asked of it."""

    def complaints(self) -> list[dict[str, Any]]:
        """Return the errors of the log, without the kills."""
        return [entry for entry in super().complaints() if not entry["event"].startswith(OOM_KILL)]

    def oom_kills(self) -> int:
        """Return how many processes it has killed."""
        lines = self._log.read_text().splitlines()
        return sum(json.loads(line)["event"].startswith(OOM_KILL) for line in lines)


def in_child(daemon: Daemon, behave: Callable[[RawThread], object], look: Callable[[], object]) -> int:
    """Have a child attach and behave; `look` is called while it waits for its end. Returns its exit status.

    The child ends with 0 where `behave` returned something true, or the number that it returned.
    """
    done_read, done_write = os.pipe()
    go_read, go_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            os.close(go_write)
            raw = RawThread()
            raw.attach(str(daemon.path))
            status = 0 if behave(raw) else 1
            os.write(done_write, b"x")
            os.read(go_read, 1)
        finally:
            os._exit(status)
    os.close(done_write)
    os.close(go_read)
    os.read(done_read, 1)
    look()
    os.close(go_write)
    os.close(done_read)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
