"""A kernel that is traced, for each test."""

from __future__ import annotations

from tests.support.program_fixtures import fd, program
from tests.support.traced_fixtures import world

__all__ = ["fd", "program", "world"]
