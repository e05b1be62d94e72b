"""`kerneld start` where it cannot: one line, and nothing is left."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from kerneld.commands.daemon import start
from kerneld.commands.failure import KerneldStatus
from shared.failure import Failure
from tests.support import daemons


@pytest.mark.parametrize("options", [[], ["--detach"]])
def test_directory_that_is_refused_is_one_line_and_7(tmp_path: Path, options: list[str]) -> None:
    tmp_path.chmod(0o755)
    done = daemons.kerneld(tmp_path / "kerneld.sock", "start", *options)
    assert (done.returncode, done.stdout) == (KerneldStatus.CANNOT_START, "")
    assert done.stderr == f"kerneld: refusing the socket directory {tmp_path}: its mode is 0755, not 0700\n"


@pytest.mark.parametrize("options", [[], ["--detach"]])
def test_machine_that_is_too_big_is_one_line_and_7(private_dir: Path, options: list[str]) -> None:
    done = daemons.kerneld(private_dir / "kerneld.sock", "start", "--ram", "900000T", *options)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (KerneldStatus.CANNOT_START, "", 1)
    assert [name for name in os.listdir(private_dir) if not name.endswith(".log")] == []


def test_kerneld_does_not_start_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("kerneld.commands.processor.why_too_old", lambda: "too old")
    options = ["--socket", str(tmp_path / "sock")]
    with pytest.raises(Failure, match="too old") as raised:
        CliRunner().invoke(start.start, options, catch_exceptions=False, standalone_mode=False)
    assert raised.value.status == KerneldStatus.CANNOT_START
    assert list(tmp_path.iterdir()) == []
