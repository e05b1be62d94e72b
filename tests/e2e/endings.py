"""The ways in which a process ends, from inside and from outside, and what its real parent sees."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import NamedTuple

from tests.e2e import scripts
from tests.support.actor import Me
from tests.support.client import Client


class Way(NamedTuple):
    """One way to end: by a script or by a signal."""

    name: str
    status: int
    script: Callable[[Me], object] | None = None
    signo: int = 0

    def end(self, client: Client) -> None:
        """End an actor that waits for orders, and see the status; its real parent knows of the end on return."""
        if self.script is not None:
            client.post(self.script)
        else:
            client.signal(self.signo)
        self.check(client)

    def check(self, client: Client) -> None:
        """Wait for the end of an actor and see the status."""
        assert client.wait() == self.status, client.stderr


WAYS = [
    Way("return", 0, scripts.leave),
    Way("exception", 1, scripts.fail),
    Way("SIGINT", -signal.SIGINT, signo=signal.SIGINT),
    Way("SIGTERM", -signal.SIGTERM, signo=signal.SIGTERM),
    Way("SIGKILL", -signal.SIGKILL, signo=signal.SIGKILL),
]
