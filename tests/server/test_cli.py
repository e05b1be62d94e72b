"""The command line: what people see, and the statuses that scripts see."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import pytest

import inspector.cli
import kerneld.cli
import target.cli
from kerneld.commands.failure import Status
from kerneld.commands.options import Size
from shared.client import Process
from shared.option_types import UNITS
from tests.rights import needs_another_user
from tests.server import daemons
from tests.server.daemons import private_socket, running_daemon

NOBODY = "8388607"
"""Larger than any pid is."""
COMMANDS = ["start", "stop", "status", "ps", "maps", "proc"]
MAINS: dict[str, Callable[[], object]] = {
    "kerneld": kerneld.cli.main,
    "inspector": inspector.cli.main,
    "target": target.cli.main,
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The socket of a daemon that runs."""
    directory = tmp_path_factory.mktemp("run")
    path = private_socket(directory)
    with running_daemon(path):
        yield path


@pytest.mark.parametrize("command", [[], *[[command] for command in COMMANDS]])
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


@pytest.mark.parametrize("file", ["kerneld.sock", "nowhere"])
def test_a_file_without_a_program_is_one_line_and_1(tmp_path: Path, file: str) -> None:
    (tmp_path / "kerneld.sock").write_text("no JSON")
    done = daemons.kerneld(tmp_path, "referee", "--replay", str(tmp_path / file))
    assert (done.returncode, done.stdout) == (Status.FAILED, "")
    why = "holds no program of the referee's" if file == "kerneld.sock" else "No such file or directory"
    assert why in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("options", [[], ["--detach"]])
def test_directory_that_is_refused_is_one_line_and_7(tmp_path: Path, options: list[str]) -> None:
    tmp_path.chmod(0o755)
    done = daemons.kerneld(tmp_path / "kerneld.sock", "start", *options)
    assert (done.returncode, done.stdout) == (Status.CANNOT_START, "")
    assert done.stderr == f"kerneld: refusing the socket directory {tmp_path}: its mode is 0755, not 0700\n"


@pytest.mark.parametrize("options", [[], ["--detach"]])
def test_machine_that_is_too_big_is_one_line_and_7(private_dir: Path, options: list[str]) -> None:
    done = daemons.kerneld(private_dir / "kerneld.sock", "start", "--ram", "900000T", *options)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (Status.CANNOT_START, "", 1)
    assert [name for name in os.listdir(private_dir) if not name.endswith(".log")] == []


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
            timeout=daemons.WAIT_SECONDS,
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


def test_status_of_a_daemon(path: Path) -> None:
    done = daemons.kerneld(path, "status")
    assert (done.returncode, done.stderr) == (0, "")
    rows = dict(line.split(":", 1) for line in done.stdout.splitlines())
    assert rows["Status"].strip() == "running"
    assert rows["Socket"].strip() == str(path)
    assert os.path.exists(f"/proc/{rows['Pid'].strip()}")


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


def test_no_such_process_is_one_line_and_5(path: Path) -> None:
    line = f"kerneld: kerneld has no process {NOBODY}\n"
    done = daemons.kerneld(path, "maps", NOBODY)
    assert (done.returncode, done.stdout, done.stderr) == (Status.NO_PROCESS, "", line)
    assert daemons.kerneld(path, "proc", "nonsense").returncode == Status.NO_PROCESS
    for command in (["trace", "--pid", NOBODY], ["ftrace", "--pid", NOBODY]):
        done = daemons.kerneld(path, *command)
        assert (done.returncode, done.stderr) == (Status.NO_PROCESS, line)


@pytest.mark.parametrize("command", [["maps"], ["maps", "--json"], ["trace", "--pid"], ["strace"], ["ftrace", "--pid"]])
def test_a_real_process_that_is_none_of_kernelds_is_called_so(path: Path, command: list[str]) -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as cat:
        done = daemons.kerneld(path, *command, str(cat.pid))
        line = f"kerneld: kerneld has no process {cat.pid}: it is a real one (cat), whose memory the host has"
        assert (done.returncode, done.stdout) == (Status.NO_PROCESS, "")
        assert done.stderr.startswith(line)
        assert done.stderr.count("\n") == 1


def test_json_of_status_ps_and_maps(path: Path) -> None:
    process = Process.attach(str(path))
    try:
        at = process.mmap(0, 8192, 3, 0x22)
        status = json.loads(daemons.kerneld(path, "status", "--json").stdout)
        assert status["status"] == "running"
        assert status["socket"] == str(path)
        assert 0 < status["mem_total_kb"] <= 64 << 10
        assert 0 < status["mem_free_kb"] < status["mem_total_kb"]
        assert status["shadow_table"] == "closed"
        assert isinstance(status["uptime_seconds"], float)
        processes = json.loads(daemons.kerneld(path, "ps", "--json").stdout)["processes"]
        (own,) = [one for one in processes if one["pid"] == os.getpid()]
        assert (own["uid"], own["threads"], own["state"]) == (os.getuid(), 1, "S")
        assert own["vsz_kb"] > own["rss_kb"]
        maps = json.loads(daemons.kerneld(path, "maps", str(os.getpid()), "--json").stdout)
        assert maps["pid"] == os.getpid()
        (mapping,) = [one for one in maps["maps"] if one["start"] <= at < one["end"]]
        assert (mapping["perms"], mapping["inode"], mapping["name"]) == ("rw-p", 0, "")
        lines = daemons.kerneld(path, "maps", str(os.getpid())).stdout.splitlines()
        assert [f"{one['start']:08x}-{one['end']:08x}" for one in maps["maps"]] == [line.split()[0] for line in lines]
    finally:
        process.close()
