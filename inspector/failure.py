"""The exit statuses that the inspector alone has, beside those of `shared.failure`."""

from __future__ import annotations

from enum import IntEnum


class InspectorStatus(IntEnum):
    """Exit statuses, as `inspector --help` lists them."""

    BUSY = 7
    NOT_MAPPED = 8
    NO_MAPPING = 9
