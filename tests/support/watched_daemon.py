"""A real `python -m kerneld start`, and what must be as before when everyone has gone: its free frames, /dev/shm."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.client import ROOT, Client, Nursery
from tests.support.daemons import start_kerneld
from tests.support.patience import SECONDS

BAD_LEVELS = ("error", "critical")


class Daemon:
    """A kerneld in a directory of its own (0700); it checks its invariants after every call unless told otherwise."""

    options: tuple[str, ...] = ()
    """Of `kerneld start`, beside those that every daemon of tests is given."""

    def __init__(self, directory: Path, nursery: Nursery, check_invariants: bool = True) -> None:
        self._check_invariants = check_invariants
        self._nursery = nursery
        self.directory = directory / "kerneld"
        self.directory.mkdir(mode=0o700)
        self.path = self.directory / "kerneld.sock"
        self._log = directory / "log"
        self._clients: list[Client] = []
        self.start()

    def start(self) -> None:
        """Start it (again) and wait until it accepts."""
        self.process = start_kerneld(
            self.path,
            *self.options,
            command=[sys.executable, "-P", "-m", "kerneld"],
            environ=self.environment,
            ram="16M",
            check_invariants=self._check_invariants,
        )
        assert self.process.stderr is not None
        with self.process.stderr as stderr, self._log.open("ab") as log:
            # The rest of the log must go somewhere while the daemon lives.
            self._drain = subprocess.Popen(["cat"], stdin=stderr, stdout=log)

    @property
    def environment(self) -> dict[str, str]:
        """What a program needs in order to find this kerneld and the project; what it leaves when killed is ours."""
        own = {"KERNELD_SOCKET": str(self.path), "PYTHONPATH": str(ROOT), "TMPDIR": str(self.path.parent.parent)}
        return {**os.environ, **own}

    def client(self) -> Client:
        """Return a new actor; it is gone when the daemon is let go, if not before."""
        client = self._nursery.start(self.path)
        self._clients.append(client)
        return client

    def let_clients_go(self) -> None:
        """End every actor."""
        for client in self._clients:
            client.close()
        self._clients.clear()

    def program(self, *words: str) -> subprocess.Popen[str]:
        """Start a program of the project, such as `inspector`, with pipes."""
        return subprocess.Popen(
            [sys.executable, "-P", "-m", *words],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self, signo: int = signal.SIGTERM) -> int:
        """End it by a signal and return its exit status; its log is complete then."""
        if self.process.poll() is None:
            self.process.send_signal(signo)
        status = self.process.wait(SECONDS)
        self._drain.wait(SECONDS)
        return status

    def complaints(self) -> list[dict[str, Any]]:
        """Return what the log of the ended daemon says of errors."""
        entries = [json.loads(line) for line in self._log.read_text().splitlines()]
        return [entry for entry in entries if entry["level"] in BAD_LEVELS]

    def close(self) -> None:
        """End everything; a daemon that broke, or complained, fails the test."""
        self.let_clients_go()
        was_alive = self.process.poll() is None
        status = self.end()
        assert self.complaints() == []
        assert not was_alive or status == 0


def status_of(checker: Client) -> dict[str, str]:
    """Return what kerneld says of itself, asked by `checker`."""
    text = checker.p.read_proc("kerneld/status").decode()
    return dict(line.split(":\t") for line in text.splitlines())


def free_kb(checker: Client) -> int:
    """Return MemFree and the cache of unused files, in KiB, once all that have ended have left their memory.

    `checker` reads it.
    """
    while True:
        status = status_of(checker)
        if status["Exiting"] == "0":
            return sum(int(status[key].split()[0]) for key in ("MemFree", "CachedUnused"))


def shm_names(daemon_pid: int) -> list[str]:
    """Return the names in /dev/shm of the segments of the kerneld that is, or was, this process."""
    try:
        return [name for name in os.listdir("/dev/shm") if name.startswith(f"kerneld-{daemon_pid}-")]
    except FileNotFoundError:
        return []
