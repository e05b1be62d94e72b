"""`kerneld start --thp` says who gets huge pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from kerneld.cli import cli
from kerneld.server import daemon, logs


@pytest.mark.parametrize(
    ("options", "thp"),
    [
        ([], "madvise"),
        (["--thp", "always"], "always"),
        (["--thp", "madvise"], "madvise"),
        (["--thp", "never"], "never"),
    ],
)
def test_the_option_is_the_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], thp: str
) -> None:
    started: list[daemon.DaemonConfig] = []
    monkeypatch.setattr(daemon, "run", lambda config, _on_ready: started.append(config))
    monkeypatch.setattr(logs, "configure", lambda *_: None)
    command: list[Any] = ["start", "--ram", "8M", "--socket", str(tmp_path / "kerneld.sock"), *options]
    assert CliRunner().invoke(cli, command).exit_code == 0
    kernel = daemon.build_kernel(started[0])
    assert kernel.sysctl.transparent_hugepage == thp
    kernel.shutdown()
