"""`kerneld status`: how the daemon is doing, for people and for programs."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.support import daemons


def test_status_of_a_daemon(path: Path) -> None:
    done = daemons.kerneld(path, "status")
    assert (done.returncode, done.stderr) == (0, "")
    rows = dict(line.split(":", 1) for line in done.stdout.splitlines())
    assert rows["Status"].strip() == "running"
    assert rows["Socket"].strip() == str(path)
    assert os.path.exists(f"/proc/{rows['Pid'].strip()}")


def test_json(path: Path) -> None:
    status = json.loads(daemons.kerneld(path, "status", "--json").stdout)
    assert status["status"] == "running"
    assert status["socket"] == str(path)
    assert 0 < status["mem_total_kb"] <= 64 << 10
    assert 0 < status["mem_free_kb"] < status["mem_total_kb"]
    assert (status["swap_total_kb"], status["swap_free_kb"]) == (0, 0)
    assert status["shadow_table"] == "closed"
    assert isinstance(status["uptime_seconds"], float)
