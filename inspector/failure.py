"""The exit statuses of the inspector only. `shared.failure` has those of all programs."""

from __future__ import annotations

from enum import IntEnum


class InspectorStatus(IntEnum):
    """Exit statuses, as `inspector --help` lists them."""

    BUSY = 7
    NOT_MAPPED = 8
    NO_MAPPING = 9
