"""`kerneld ps`: the processes, in columns and for programs."""

from __future__ import annotations

import json
import os
from pathlib import Path

from shared.client import Process
from tests.support import daemons


def test_ps_lists_its_processes_in_columns(path: Path) -> None:
    process = Process.attach(str(path))
    try:
        done = daemons.kerneld(path, "ps")
    finally:
        process.close()
    assert (done.returncode, done.stderr) == (0, "")
    head, *rows = [line.split(None, 6) for line in done.stdout.splitlines()]
    assert head == ["PID", "UID", "THREADS", "VSZ", "RSS", "STATE", "COMMAND"]
    [own] = [row for row in rows if int(row[0]) == os.getpid()]
    assert own[1:3] == [str(os.getuid()), "1"]
    assert int(own[3]) > 0
    assert "kerneld" in [row[6] for row in rows], "the command itself is one of them, by its own name"


def test_json(path: Path) -> None:
    process = Process.attach(str(path))
    try:
        process.mmap(0, 8192, 3, 0x22)
        processes = json.loads(daemons.kerneld(path, "ps", "--json").stdout)["processes"]
    finally:
        process.close()
    (own,) = [one for one in processes if one["pid"] == os.getpid()]
    assert (own["uid"], own["threads"], own["state"]) == (os.getuid(), 1, "S")
    assert own["vsz_kb"] > own["rss_kb"]
