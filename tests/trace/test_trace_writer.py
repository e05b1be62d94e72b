"""A format whose package is missing, or that no person can read, is refused in one line."""

from __future__ import annotations

import io
import sys

import pytest

from kerneld.failure import Failure, Status
from kerneld.trace_writer import WRITERS


def test_without_its_package_perfetto_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kerneld.perfetto.writer", None)
    with pytest.raises(Failure, match=r"pip install 'kerneld\[perfetto\]'") as raised:
        WRITERS["perfetto"](io.TextIOWrapper(io.BytesIO()))
    assert raised.value.status == Status.FAILED


def test_no_perfetto_file_goes_to_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr(file, "isatty", lambda: True)
    with pytest.raises(Failure, match="-o") as raised:
        WRITERS["perfetto"](file)
    assert raised.value.status == Status.USAGE
