"""What the user that runs the tests may do on this host: uid 0 alone does not say it, nor another uid that it may not.

In a container, or in `unshare -Ur`, there may be no other user to become. Each mark says what is missing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from kerneld.referee.rights import is_host_superuser

NOBODY = 65534


def _works(act: Callable[[], object]) -> bool:
    """Whether `act` raises nothing, tried in a child."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            act()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _become_nobody() -> None:
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    if os.getuid() != NOBODY:
        raise PermissionError


@cache
def can_become_others() -> bool:
    """Whether a child can become another user."""
    return _works(_become_nobody)


def can_others_read(path: Path) -> bool:
    """Whether another user, whom root has become, can read a file: root's own directories may be closed to others."""

    def read() -> None:
        _become_nobody()
        path.read_bytes()

    return _works(read)


needs_another_user = pytest.mark.skipif(
    not can_become_others(), reason="becoming another user takes CAP_SETUID, and a user namespace that has another"
)
ROOT_IS_NOT_THE_HOSTS = (
    ""
    if os.geteuid() or is_host_superuser()
    else ("kerneld takes the root of this user namespace for its superuser; outside, it has no such rights")
)
"""Why root's programs do not do the same inside and outside, or empty."""
needs_the_hosts_rights = pytest.mark.skipif(bool(ROOT_IS_NOT_THE_HOSTS), reason=ROOT_IS_NOT_THE_HOSTS)
