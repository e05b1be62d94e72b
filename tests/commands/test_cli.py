"""The command line: what people see, and the statuses that scripts see."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

import inspector.cli
import kerneld.cli
import target.cli
from kerneld.commands.options import Size
from shared.client import Process
from shared.failure import Status
from shared.option_types import UNITS
from tests.support import daemons
from tests.support.daemons import running_daemon
from tests.support.patience import SECONDS
from tests.support.rights import needs_another_user

NOBODY = "8388607"
"""Larger than any pid is."""
MAINS: dict[str, Callable[[], object]] = {
    "kerneld": kerneld.cli.main,
    "inspector": inspector.cli.main,
    "target": target.cli.main,
}


@pytest.mark.parametrize("command", [[], *[[command] for command in kerneld.cli.COMMANDS]])
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_has_examples(tmp_path: Path, command: list[str], option: str) -> None:
    done = daemons.kerneld(tmp_path, *command, option)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Examples:\n    kerneld" in done.stdout


def test_version(tmp_path: Path) -> None:
    assert daemons.kerneld(tmp_path, "--version").stdout.startswith("kerneld ")


@pytest.mark.parametrize("command", [["stop"], ["status"], ["ps"], ["maps", "1"], ["proc", "meminfo"]])
def test_without_a_daemon_it_is_one_line_and_3(tmp_path: Path, command: list[str]) -> None:
    done = daemons.kerneld(tmp_path / "kerneld.sock", *command)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (Status.NO_DAEMON, "", 1)


@pytest.mark.parametrize(
    "words", [["kerneld", "status"], ["kerneld", "ps"], ["kerneld", "trace"], ["kerneld", "run", "--", "true"],
              ["inspector", "1"], ["target"]], ids=" ".join
)  # fmt: skip
def test_a_socket_path_that_none_can_have_is_called_so(tmp_path: Path, words: list[str]) -> None:
    path = tmp_path / ("x" * 120)
    done = subprocess.run(
        [sys.executable, "-m", *words], env=daemons.environment(path), capture_output=True, text=True, check=False
    )
    line = f"{words[0]}: the socket path is longer than 107 bytes: {path}\n"
    assert (done.returncode, done.stdout, done.stderr) == (Status.NO_DAEMON, "", line)


@pytest.mark.parametrize(
    "command",
    [
        ["nonsense"],
        ["--nonsense"],
        ["maps"],
        ["maps", "x"],
        ["start", "--ram", "much"],
        ["start", "--ram", "1K"],
        ["start", "--ram", "1048577"],
        ["start", "--max-clients", "0"],
        ["start", "--thp", "sometimes"],
        ["start", "--log-format", "xml"],
        ["start", "--host-interval", "nan"],
        ["start", "--socket", ""],
        ["stop", "--timeout", "inf"],
        ["trace", "--duration", "nan"],
        ["trace", "--event", "nonsense"],
        ["strace", "x"],
        ["ftrace", "--count", "0"],
        ["run"],
        ["inspect-dump"],
        ["proc", "meminfo", "--offset", "-1"],
        ["proc", "meminfo", "--length", "much"],
        ["proc", "meminfo", "--offset", "0x8000000000000000"],
        ["start", "--mmap-min-addr", "128T"],
        ["referee", "--programs", "none"],
    ],
)
def test_wrong_usage_is_one_line_and_2(tmp_path: Path, command: list[str]) -> None:
    done = daemons.kerneld(tmp_path / "kerneld.sock", *command)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (Status.USAGE, "", 1)
    of_command = {"nonsense": "", "--nonsense": " start"}.get(command[0], f" {command[0]}")
    assert done.stderr.endswith(f" (kerneld{of_command} --help tells more)\n")


@needs_another_user
@pytest.mark.parametrize(
    "words",
    [["kerneld", "stop"], ["kerneld", "status"], ["kerneld", "ps"], ["inspector", "1", "0", "+4K"], ["target"]],
    ids=" ".join,
)
def test_locked_directory_is_one_line_and_6(path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    read_fd, write_fd = os.pipe()
    monkeypatch.setattr(sys, "argv", [*words, "--socket", str(path)])
    for module in kerneld.cli.COMMANDS.values():
        # The child can read no file of a checkout that is its owner's alone.
        import_module(module)
    pid = os.fork()
    if pid == 0:
        # Not a new program: the interpreter itself may stand where that user cannot reach it.
        status = 255
        try:
            os.dup2(write_fd, 2)
            os.setuid(65534)
            sys.stderr = os.fdopen(2, "w")
            MAINS[words[0]]()
        except SystemExit as ended:
            sys.stderr.flush()
            status = int(ended.code or 0)
        finally:
            os._exit(status)
    os.close(write_fd)
    with os.fdopen(read_fd) as pipe:
        said = pipe.read()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == Status.NOT_PERMITTED
    assert said == f"{words[0]}: not permitted to use the kerneld at {path}\n"


@pytest.mark.parametrize(
    "words", [["kerneld", "ps"], ["kerneld", "trace"], ["inspector", "1"], ["target"]], ids=" ".join
)
def test_a_full_house_is_told_from_one_that_has_gone(private_dir: Path, words: list[str]) -> None:
    path = private_dir / "kerneld.sock"
    with running_daemon(path, "--max-clients", "1"):
        inside = Process.attach(str(path))
        inside.getpid()
        done = subprocess.run(
            [sys.executable, "-m", *words],
            env=daemons.environment(path),
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        inside.close()
    line = f"{words[0]}: kerneld closed the connection at once: it has too many, or is ending; its log says\n"
    assert (done.returncode, done.stdout, done.stderr) == (Status.DAEMON_GONE, "", line)


@pytest.mark.parametrize("value", ["1M", "1m", "256M", "1G", "1GiB", "1048576", "1024K"])
def test_sizes(value: str) -> None:
    size_bytes = Size().convert(value, None, None)
    digits = value.rstrip("KMGmiB")
    unit = value[len(digits) : len(digits) + 1].upper()
    assert size_bytes == int(digits) * UNITS[unit]


def test_no_such_process_is_one_line_and_5(path: Path) -> None:
    line = f"kerneld: kerneld has no process {NOBODY}\n"
    done = daemons.kerneld(path, "maps", NOBODY)
    assert (done.returncode, done.stdout, done.stderr) == (Status.NO_PROCESS, "", line)
    for file in ("maps", "stat", "pagemap"):
        done = daemons.kerneld(path, "proc", f"{NOBODY}/{file}")
        assert (done.returncode, done.stdout, done.stderr) == (Status.NO_PROCESS, "", line)
    for command in (["trace", "--pid", NOBODY], ["ftrace", "--pid", NOBODY]):
        done = daemons.kerneld(path, *command)
        assert (done.returncode, done.stderr) == (Status.NO_PROCESS, line)


def test_no_such_file_is_no_matter_of_the_process(path: Path) -> None:
    with Process.attach(str(path)) as inside:
        for name in ("nonsense", f"{inside.pid}/nonsense", f"{NOBODY}/nonsense", "9" * 5000):
            line = f"kerneld: kerneld's /proc has no file {name}: kerneld proc --help lists them\n"
            done = daemons.kerneld(path, "proc", name)
            assert (done.returncode, done.stdout, done.stderr) == (Status.NO_PROCESS, "", line)


_OF_ONE_PROCESS = ["maps {}", "maps --json {}", "trace --pid {}", "strace {}", "ftrace --pid {}"]
_OF_ONE_PROCESS += ["proc {}/maps", "proc {}/status", "proc /proc/{}/cmdline", "proc {}"]


@pytest.mark.parametrize("command", _OF_ONE_PROCESS)
def test_a_real_process_that_is_none_of_kernelds_is_called_so(path: Path, command: str) -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as cat:
        done = daemons.kerneld(path, *command.format(cat.pid).split())
        line = f"kerneld: kerneld has no process {cat.pid}: it is a real one (cat), whose memory the host has"
        assert (done.returncode, done.stdout) == (Status.NO_PROCESS, "")
        assert done.stderr.startswith(line)
        assert done.stderr.count("\n") == 1
