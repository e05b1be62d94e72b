"""A kernel that is traced, for each test."""

from __future__ import annotations

from tests.support.traced_fixtures import fd, program, world

__all__ = ["fd", "program", "world"]
