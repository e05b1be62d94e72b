"""The type of the fixture `attached`."""

from __future__ import annotations

from collections.abc import Callable

from shared.client import Process
from tests.shared.fake_kerneld import FakeKerneld, Script

Attached = Callable[[Script], tuple[FakeKerneld, Process]]
