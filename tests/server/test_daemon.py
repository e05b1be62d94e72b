"""Real daemons: started, signalled, killed, started twice."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shared.client import KerneldGone, Process
from tests.support.daemons import KERNELD, environment, kerneld, running_daemon, wait_until_gone
from tests.support.patience import SECONDS
from tests.support.watched_daemon import shm_names


@pytest.fixture
def path(private_dir: Path) -> Path:
    return private_dir / "kerneld.sock"


@pytest.mark.parametrize("signo", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_lets_clients_go_and_leaves_nothing(path: Path, signo: signal.Signals) -> None:
    with running_daemon(path) as daemon:
        client = Process.attach(str(path))
        daemon.send_signal(signo)
        assert daemon.wait(SECONDS) == 0
        with pytest.raises(KerneldGone):
            client.getpid()
        client.close()
    assert list(path.parent.iterdir()) == []
    assert shm_names(daemon.pid) == []


def test_ready_line_is_one_json_object(path: Path) -> None:
    command = [*KERNELD, "start", "--ram", "32M", "--log-format", "json"]
    with subprocess.Popen(command, env=environment(path), stderr=subprocess.PIPE) as daemon:
        assert daemon.stderr is not None
        ready = json.loads(daemon.stderr.readline())
        daemon.terminate()
    assert ready["event"] == "kerneld ready"
    assert (ready["socket"], ready["ram_mib"], ready["pid"]) == (str(path), 32, daemon.pid)


_WITHOUT_INOTIFY = """
from kerneld.__main__ import main
from kerneld.fs.inotify import Inotify

Inotify.__init__ = lambda inotify: setattr(inotify, "fd", -1)
main()
"""


def test_a_host_without_an_inotify_instance_is_a_warning(path: Path) -> None:
    command = [sys.executable, "-c", _WITHOUT_INOTIFY, "start", "--ram", "32M"]
    with subprocess.Popen(command, env=environment(path), stderr=subprocess.PIPE) as daemon:
        assert daemon.stderr is not None
        assert b"kerneld ready" in daemon.stderr.readline()
        assert b"no inotify instance is left" in daemon.stderr.readline()
        daemon.terminate()


def test_bare_kerneld_starts(path: Path) -> None:
    with subprocess.Popen([*KERNELD], env=environment(path), stderr=subprocess.PIPE) as daemon:
        assert daemon.stderr is not None
        assert b"kerneld ready" in daemon.stderr.readline()
        daemon.send_signal(signal.SIGINT)
        assert daemon.wait(SECONDS) == 0


def test_second_daemon_says_so_and_the_first_goes_on(path: Path) -> None:
    with running_daemon(path) as daemon:
        second = kerneld(path, "start")
        assert second.returncode == 1
        assert second.stderr == f"kerneld: kerneld is already running on {path} (pid {daemon.pid})\n"
        assert kerneld(path, "status").returncode == 0


def test_killed_daemon_is_replaced(path: Path) -> None:
    with running_daemon(path) as daemon:
        daemon.kill()
        daemon.wait()
        assert path.is_socket()
        assert kerneld(path, "status").returncode == 3
        with running_daemon(path):
            Process.attach(str(path)).close()


def test_log_whose_reader_left_stops_nothing(path: Path) -> None:
    with running_daemon(path, "--log-level", "debug") as daemon:
        assert daemon.stderr is not None
        daemon.stderr.close()
        for _ in range(3):
            Process.attach(str(path)).close()
        daemon.terminate()
        assert daemon.wait(SECONDS) == 0


def test_a_detached_daemon_keeps_no_pipe_of_its_callers_open(path: Path) -> None:
    read_fd, write_fd = os.pipe()
    subprocess.run(
        [*KERNELD, "start", "--detach", "--ram", "64M"],
        env=environment(path),
        pass_fds=[write_fd],
        stdout=subprocess.DEVNULL,
        timeout=SECONDS,
        check=True,
    )
    os.close(write_fd)
    try:
        assert select.select([read_fd], [], [], SECONDS)[0], "the daemon has the other end"
        assert os.read(read_fd, 1) == b""
    finally:
        os.close(read_fd)
        assert kerneld(path, "stop").returncode == 0


@pytest.mark.parametrize(("more", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
def test_a_log_has_colours_where_they_are_welcome(path: Path, more: dict[str, str], coloured: bool) -> None:
    main_fd, terminal_fd = os.openpty()
    usual = {name: value for name, value in environment(path).items() if name != "NO_COLOR"}
    try:
        command = [*KERNELD, "start", "--ram", "64M"]
        daemon = subprocess.Popen(command, env={**usual, "TERM": "xterm", **more}, stderr=terminal_fd)
        said = b""
        while b"\n" not in said:
            said += os.read(main_fd, 4096)
        daemon.terminate()
        assert daemon.wait(SECONDS) == 0
        assert (b"\x1b[" in said) is coloured
    finally:
        os.close(main_fd)
        os.close(terminal_fd)


def test_detach_returns_when_it_accepts_and_stop_when_it_has_ended(path: Path) -> None:
    started = kerneld(path, "start", "--detach", "--ram", "64M")
    assert (started.returncode, started.stderr) == (0, "")
    pid = int(started.stdout.split("pid ")[1].split(",")[0])
    pidfd = os.pidfd_open(pid)
    try:
        log = Path(started.stdout.rsplit("log ", 1)[1].strip())
        assert "kerneld ready" in log.read_text()
        process = Process.attach(str(path))
        assert process.getpid() == os.getpid()
        process.close()
        assert os.getsid(pid) == pid
        second = kerneld(path, "start", "--detach")
        assert second.returncode == 1
        assert second.stderr == f"kerneld: kerneld is already running on {path} (pid {pid})\n"
        stopped = kerneld(path, "stop")
        assert stopped.returncode == 0
        assert wait_until_gone(pidfd)
        assert list(path.parent.iterdir()) == [log]
    finally:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)
