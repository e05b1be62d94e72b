"""What is read is the trace of a machine in this process: the one that the tests of tracing have."""

from __future__ import annotations

from tests.support.program_fixtures import fd, program
from tests.support.traced_fixtures import world

__all__ = ["fd", "program", "world"]
