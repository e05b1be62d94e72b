"""A daemon whose clients are out for harm: that it kills one for want of memory is no complaint, but counted."""

from __future__ import annotations

import json
from typing import Any

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
