"""The exit statuses of kerneld only. `shared.failure` has those of all programs."""

from __future__ import annotations

from enum import IntEnum


class KerneldStatus(IntEnum):
    """Exit statuses, as `kerneld --help` lists them."""

    CANNOT_START = 7
    CANNOT_RUN = 8
