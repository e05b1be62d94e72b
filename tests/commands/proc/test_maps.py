"""`kerneld maps`: what a process has mapped, as it reads it itself."""

from __future__ import annotations

import json
import os
from pathlib import Path

from shared.client import Process
from tests.support import daemons


def test_maps_and_proc_print_what_the_process_reads_itself(path: Path) -> None:
    process = Process.attach(str(path))
    try:
        process.mmap(0, 8192, 3, 0x22)
        own = process.read_proc("self/maps").decode()
        assert own
        assert daemons.kerneld(path, "maps", str(os.getpid())).stdout == own
        assert daemons.kerneld(path, "proc", f"/proc/{os.getpid()}/maps").stdout == own
    finally:
        process.close()


def test_json(path: Path) -> None:
    process = Process.attach(str(path))
    try:
        at = process.mmap(0, 8192, 3, 0x22)
        maps = json.loads(daemons.kerneld(path, "maps", str(os.getpid()), "--json").stdout)
        lines = daemons.kerneld(path, "maps", str(os.getpid())).stdout.splitlines()
    finally:
        process.close()
    assert maps["pid"] == os.getpid()
    (mapping,) = [one for one in maps["maps"] if one["start"] <= at < one["end"]]
    assert (mapping["perms"], mapping["inode"], mapping["name"]) == ("rw-p", 0, "")
    assert [f"{one['start']:08x}-{one['end']:08x}" for one in maps["maps"]] == [line.split()[0] for line in lines]
