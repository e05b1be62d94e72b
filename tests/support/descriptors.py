"""The descriptors of the process that runs the tests, and a check that none is left behind.

What an earlier test has left to the collector may be closed at any time. In the middle of a test it would look as if
that test had closed one too many.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager


def _now() -> dict[str, str]:
    with os.scandir("/proc/self/fd") as listing:
        names = [entry.name for entry in listing]
    return {name: os.readlink(f"/proc/self/fd/{name}") for name in names if os.path.lexists(f"/proc/self/fd/{name}")}


def open_descriptors() -> dict[str, str]:
    """Return this process's descriptors and what they are, once what nobody refers to any more is closed."""
    gc.collect()
    return _now()


@contextmanager
def leaves_no_descriptor() -> Iterator[None]:
    """Check that what runs inside leaves none. For fixtures: it collects only where one seems to be left."""
    before = _now()
    yield
    if not _now().items() <= before.items():
        gc.collect()  # The traceback of an error that was caught may hold one.
    assert _now().items() <= before.items()
