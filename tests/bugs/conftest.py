"""The kit of checks, and why none of these tests can run on a host."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kerneld.commands.compiled import BuildError
from kerneld.commands.conformance.kit import ensure_kit
from tests.native.inside import why_not_here


@pytest.fixture(scope="session")
def kit() -> Path:
    """The program of the kit."""
    why = why_not_here()
    if why:
        pytest.skip(why)
    if os.geteuid():
        pytest.skip("only root can become another user, and sees frame numbers, in some of the checks")
    try:
        return ensure_kit()
    except BuildError as error:
        pytest.skip(str(error))
