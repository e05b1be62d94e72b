"""Fixtures: a scripted kerneld and a process attached to it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shared.client import Process
from tests.shared.attached import Attached
from tests.shared.fake_kerneld import FakeKerneld, Script


@pytest.fixture
def attached(tmp_path: Path) -> Iterator[Attached]:
    """Start a scripted kerneld in a thread, and attach to it."""
    with contextlib.ExitStack() as stack:

        def start(script: Script) -> tuple[FakeKerneld, Process]:
            fake = stack.enter_context(FakeKerneld(tmp_path / "kerneld.sock", script).in_thread())
            return fake, stack.enter_context(Process.attach(fake.path))

        yield start


@pytest.fixture
def attached_apart(tmp_path: Path) -> Iterator[Callable[[Script], Process]]:
    """Start a scripted kerneld in a process of its own, and attach to it."""
    with contextlib.ExitStack() as stack:

        def start(script: Script) -> Process:
            fake = stack.enter_context(FakeKerneld(tmp_path / "kerneld.sock", script).in_process())
            return stack.enter_context(Process.attach(fake.path))

        yield start
