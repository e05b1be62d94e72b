"""The collector of Python's garbage: never so long that a client has to wait for it.

Reference counting frees what a request, a process or a file has had; only what refers to itself in a circle is left to
the collector. It looks at all objects of a generation at once: of a process with 60,000 VMAs that took 70 ms, and of
several such processes seconds. So the two young generations are small, and the old one, which has all that lives, is
looked at only when the last client has gone, and its memory too.
"""

from __future__ import annotations

import gc

YOUNG_OBJECTS = 2_000
"""The objects of the youngest generation: a millisecond and a half."""
YOUNG_COLLECTIONS = 3
"""The youngest generations of which the second one consists."""
_NEVER = (1 << 31) - 1
_MANY = 10
"""The collections of the second generation after which the old one may have something to collect."""


def spare_collector() -> None:
    """Exclude the objects of the start from later collections, and keep those short that come between requests."""
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, YOUNG_COLLECTIONS, _NEVER)


def collect_old() -> None:
    """Collect the garbage among the old objects, if many have become old. For when nobody waits, and few live."""
    if gc.get_count()[2] >= _MANY:
        gc.collect()
