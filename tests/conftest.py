"""What holds in all tests.

Hypothesis has no deadline anywhere; on CI (the variable CI is set) it has the same examples each time. No signal that
asks to end is ignored, as a shell has SIGINT for what runs behind `&`, and nohup SIGHUP: every program of a test would
ignore it too. A test that is cut off by time says how much it did (`record_property("played", ...)`): the run's last
lines show it.
"""

from __future__ import annotations

import functools
import gc
import getpass
import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

from shared.processor import why_too_old

settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")

for _signo in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
    if signal.getsignal(_signo) is signal.SIG_IGN:
        signal.signal(_signo, signal.default_int_handler if _signo == signal.SIGINT else signal.SIG_DFL)


_LONGEST_BASE = 40
"""What a socket's path leaves for pytest's own directory: 107 bytes less a worker's, a test's, and the daemon's."""


def pytest_configure(config: pytest.Config) -> None:
    """End where numpy cannot be imported. Have the tests' directories in a short place where the usual one is long.

    It is so for a user with a long name, say.
    """
    if why_too_old():
        pytest.exit(why_too_old(), returncode=1)
    if config.option.basetemp is not None or hasattr(config, "workerinput"):
        return
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "unknown"
    if len(os.fsencode(Path(tempfile.gettempdir()) / f"pytest-of-{user}" / "pytest-0000")) > _LONGEST_BASE:
        config.option.basetemp = tempfile.mkdtemp(prefix="kd-", dir="/tmp")
        config.add_cleanup(functools.partial(shutil.rmtree, config.option.basetemp, ignore_errors=True))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests that are cut off by time have done; the properties come from workers too."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == "played":
                terminalreporter.write_line(f"{report.nodeid}: {value}")


def pytest_collection_finish() -> None:
    """What is there before the first test stays to the end: a test that collects garbage need not look at it again."""
    gc.collect()
    gc.freeze()
