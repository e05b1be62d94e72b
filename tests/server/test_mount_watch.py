"""The watch of the host's mounts."""

from __future__ import annotations

import contextlib
from pathlib import Path

from kerneld.server.mount_watch import MountWatch
from tests.support.fuse import stuck_file_system


def test_a_mount_that_comes_or_goes_is_seen(tmp_path: Path) -> None:
    """Others may mount at the same time: then it is seen all the same."""
    with contextlib.closing(MountWatch()) as watch:
        with stuck_file_system(tmp_path) as stuck:
            assert watch.have_changed()
            stuck.end()
        assert watch.have_changed()


def test_a_closed_watch_says_that_all_may_have_changed() -> None:
    watch = MountWatch()
    watch.close()
    assert watch.have_changed()
