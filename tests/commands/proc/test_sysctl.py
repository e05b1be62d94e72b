"""`kerneld sysctl`: settings of a machine that runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.failure import Status
from tests.support import daemons


def _sysctl(path: Path, *words: str) -> tuple[int, str, str]:
    done = daemons.kerneld(path, "sysctl", *words)
    return done.returncode, done.stdout, done.stderr


def test_settings_are_set_and_told(path: Path) -> None:
    words = ("vm.swappiness=7", "vm.swappiness", "/sys/kernel/mm/transparent_hugepage/enabled=never")
    huge = "/sys/kernel/mm/transparent_hugepage/enabled"
    assert _sysctl(path, *words, "/proc/sys/vm/swappiness", huge) == (
        0,
        "vm.swappiness = 7\n" * 2 + f"{huge} = never\n/proc/sys/vm/swappiness = 7\n{huge} = always madvise [never]\n",
        "",
    )


@pytest.mark.parametrize(
    ("word", "status", "line"),
    [
        ("vm.swappiness=201", Status.FAILED, "vm.swappiness does not take 201: Invalid argument"),
        ("vm.nothing", Status.NO_PROCESS, "kerneld has no setting vm.nothing"),
        ("vm.nothing=1", Status.NO_PROCESS, "kerneld has no setting vm.nothing"),
        ("kernel.randomize_va_space=1", Status.NOT_PERMITTED, "not permitted to set kernel.randomize_va_space"),
    ],
)
def test_what_cannot_be(path: Path, word: str, status: int, line: str) -> None:
    code, output, errors = _sysctl(path, word)
    assert (code, output) == (status, "")
    assert line in errors


def test_all_that_may_be_read(path: Path) -> None:
    code, output, errors = _sysctl(path, "-a")
    assert (code, errors) == (0, "")
    told = dict(line.split(" = ") for line in output.splitlines())
    assert told["vm.max_map_count"] == "65530"
    assert told["kernel.shmmni"] == "4096"
    assert "[" in told["/sys/kernel/mm/transparent_hugepage/enabled"]
    assert "vm.drop_caches" not in told  # nobody reads it
    assert _sysctl(path, *told) == (0, output, "")


@pytest.mark.parametrize("words", [(), ("-a", "vm.swappiness")])
def test_names_or_all(path: Path, words: tuple[str, ...]) -> None:
    code, output, errors = _sysctl(path, *words)
    assert (code, output) == (Status.USAGE, "")
    assert "name the settings, or give -a for all of them" in errors
