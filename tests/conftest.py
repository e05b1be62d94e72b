"""What holds in all tests.

Hypothesis has no deadline anywhere; on CI (the variable CI is set) it has the same examples each time. SIGINT is not
ignored, as a shell has it for what runs behind `&`: every program of a test would ignore it too. A test that is cut off
by time says how much it did (`record_property("played", ...)`): the run's last lines show it.
"""

from __future__ import annotations

import os
import signal

import pytest
from hypothesis import settings

settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests that are cut off by time have done; the properties come from workers too."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == "played":
                terminalreporter.write_line(f"{report.nodeid}: {value}")


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name a test alike in every worker, as pytest-xdist wants it: a value that holds this process's id says PID."""
    own = str(os.getpid())
    return val.replace(own, "PID") if isinstance(val, str) and own in val else None
