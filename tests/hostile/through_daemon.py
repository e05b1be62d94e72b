"""Hostile clients of a real daemon, beside a client that means well and must not notice.

Owns one round: a daemon, its hostile clients, the witness, and the comparison of what is there before and after.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

from shared.client import Process
from shared.uapi.mman import Map, Prot
from tests.support.client import ROOT
from tests.support.watched_daemon import Daemon, shm_names

PAGE = 4096
PAGES = 4
CLIENT_SECONDS = 3600.0
BREATH_SECONDS = 0.01
"""Between two looks of the witness, so that it does not take the processor from those it is to be a witness of."""


class Witness:
    """A client that means well: what it has stored is what it loads, whatever others do."""

    def __init__(self, path: Path | str) -> None:
        self._process = Process.attach(str(path))
        self._at = self._process.mmap(0, PAGES * PAGE, Prot.READ | Prot.WRITE, Map.PRIVATE | Map.ANONYMOUS)
        self._number = 0
        self.look()

    def look(self) -> None:
        """Check what was stored last, and store something else. Needs no new frame from the second time on."""
        memory = self._process.mem
        if self._number:
            expected = self._number.to_bytes(8, "little") * (PAGES * PAGE // 8)
            assert memory[self._at : self._at + PAGES * PAGE] == expected
        self._number += 1
        memory[self._at : self._at + PAGES * PAGE] = self._number.to_bytes(8, "little") * (PAGES * PAGE // 8)

    def free_kb(self) -> int:
        """Return how much RAM is free, or of files that nothing maps, once all that have ended have left theirs."""
        while True:
            lines = self._process.read_proc("kerneld/status").decode().splitlines()
            status = dict(line.split(":\t") for line in lines)
            if status["Exiting"] == "0":
                return sum(int(status[key].split()[0]) for key in ("MemFree", "CachedUnused"))

    def tasks(self) -> int:
        """Return how many processes the daemon serves."""
        return len(self._process.read_proc("kerneld/tasks").splitlines())

    def close(self) -> None:
        """Detach."""
        self._process.close()


def fds_of(pid: int) -> int:
    """Return how many descriptors a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def _start(daemon: Daemon, seed: int, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-m", "tests.hostile.client", str(daemon.path), str(seed), str(count)]
    # Its files go with the daemon's directory: who is killed removes nothing.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(daemon.directory)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def run(daemon: Daemon, seed: int, count: int, nr_clients: int) -> Counter[str]:
    """Send `count` datagrams by `nr_clients` hostile processes at once and return what came of them.

    Raises AssertionError where a client has seen what must not be, the witness has, or anything is left.
    """
    witness = Witness(daemon.path)
    before = witness.free_kb(), fds_of(daemon.process.pid), witness.tasks()
    share = count // nr_clients
    clients = [(_start(daemon, seed * 100 + number, share), share) for number in range(nr_clients)]
    total: Counter[str] = Counter()
    while clients:
        client, _ = clients.pop(0)
        while client.poll() is None:
            witness.look()
            total["witnessed"] += 1
            with contextlib.suppress(subprocess.TimeoutExpired):
                client.wait(BREATH_SECONDS)
        said, _ = client.communicate(timeout=CLIENT_SECONDS)
        for line in said.splitlines():
            total.update(json.loads(line))
        if client.returncode == -signal.SIGKILL:
            # The OOM killer's work: another goes on with what is left.
            total["killed"] += 1
            left = count - total["datagrams"] - sum(share for _, share in clients)
            if left > 0:
                clients.append((_start(daemon, seed * 100 + nr_clients + total["killed"], left), left))
        else:
            assert client.returncode == 0, f"a hostile client ended with {client.returncode}"
    witness.look()
    after = witness.free_kb(), fds_of(daemon.process.pid), witness.tasks()
    # The process that looks into real ones stays once somebody has needed it, and so does the daemon's socket to it.
    # So does the pidfd of each process that gave rights up, until another one does.
    most_fds = before[1] + 1 + nr_clients + total["killed"]
    is_as_before = (after[0], after[2]) == (before[0], before[2]) and before[1] <= after[1] <= most_fds
    assert is_as_before, f"free kB, descriptors, tasks: before {before}, after {after}"
    assert shm_names(daemon.process.pid) == []
    witness.close()
    return total
