"""The program as a person calls it, on a scripted machine: statuses, streams, and that a table is always closed."""

from __future__ import annotations

import errno
import json
import signal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from inspector import cli
from shared.client import KerneldUnavailable, Process
from shared.failure import Status
from shared.uapi.page import PAGE_SIZE
from tests.inspector.fake import BASE, PID, FakeMachine, end_by

RANGE = [str(PID), hex(BASE), "+16K"]
WATCHED = ["open", "start", "close", "detach"]


class Inspector:
    """Runs the command line on `machine`; None is a kerneld that does not run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.machine: FakeMachine | None = None
        self.socket_path: str | None = None
        monkeypatch.setattr(Process, "attach", self.attach)
        monkeypatch.delenv("NO_COLOR", raising=False)

    def attach(self, socket_path: str | None = None) -> FakeMachine:
        self.socket_path = socket_path
        if self.machine is None:
            raise KerneldUnavailable("no kerneld here: start one with 'kerneld start'")
        return self.machine

    def run(self, machine: FakeMachine | None, *args: str, color: bool = False) -> Result:
        self.machine = machine
        result = CliRunner().invoke(cli.cli, args, color=color)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    def fail(self, machine: FakeMachine | None, *args: str) -> tuple[int, str]:
        """Run what must fail; return the status and the one line on stderr."""
        result = self.run(machine, *args)
        assert result.stdout == ""
        (line,) = result.stderr.splitlines()
        assert line.startswith("inspector: ")
        return result.exit_code, line


@pytest.fixture
def inspector(monkeypatch: pytest.MonkeyPatch) -> Inspector:
    return Inspector(monkeypatch)


def json_prints(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.parametrize("signo", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_closes_the_table(inspector: Inspector, signo: int) -> None:
    machine = FakeMachine([[(3, 0)], [(7, 9)]], end_by(signo))
    result = inspector.run(machine, *RANGE, "--interval", "0.01")
    assert result.exit_code == 0
    assert machine.calls == WATCHED
    assert machine.span == (BASE, BASE + 0x4000)
    assert result.stdout.splitlines()[-1] == "The table is closed."
    assert result.stdout.count(f"pid {PID} ") == 2
    assert result.stderr == ""


def test_json_prints_say_what_changed(inspector: Inspector) -> None:
    machine = FakeMachine([[(3, 0), (7, 5)], [(7, 9), (7, 5)], [(7, 9), (7, 6)]])
    result = inspector.run(machine, *RANGE, "--json", "--interval", "0.01")
    first, second, third = json_prints(result)
    assert [shown["changed"] for shown in (first, second, third)] == [[], [0], [1]]
    assert second["entries"][0] == {"vaddr": BASE, "pfn": 9, "flags": 7}
    assert len(second["entries"]) == 4
    assert (first["pid"], first["start"], first["end"], first["exited"]) == (PID, BASE, BASE + 0x4000, False)
    assert result.stderr == "The table is closed.\n"


def test_reading_a_table_with_flags_makes_no_call(inspector: Inspector) -> None:
    machine = FakeMachine([[(3, 0)]] * 5)
    inspector.run(machine, *RANGE, "--interval", "0.01")
    assert machine.looks == 5
    assert machine.calls == WATCHED


def test_an_exit_is_said_once_and_the_table_stays(inspector: Inspector) -> None:
    machine = FakeMachine([[(7, 9)], [], [], []])
    machine.live_until_table = 1
    result = inspector.run(machine, *RANGE, "--json", "--interval", "0.01")
    prints = json_prints(result)
    assert [shown["exited"] for shown in prints] == [False, True, True, True]
    assert prints[1]["changed"] == [0]
    assert [entry["vaddr"] for entry in prints[3]["entries"]] == [BASE + page * PAGE_SIZE for page in range(4)]
    assert result.stderr.splitlines() == [
        f"Process {PID} has exited; its table stays. Ctrl+C ends.",
        "The table is closed.",
    ]
    assert result.exit_code == 0


def test_an_empty_range_of_a_live_process_is_no_exit(inspector: Inspector) -> None:
    result = inspector.run(FakeMachine([[(7, 9)], [], []]), *RANGE, "--json", "--interval", "0.01")
    assert [shown["exited"] for shown in json_prints(result)] == [False, False, False]


def test_once(inspector: Inspector) -> None:
    machine = FakeMachine([[(3, 0)], [(7, 9)]])
    result = inspector.run(machine, *RANGE, "--once", "--all")
    assert (result.exit_code, machine.looks, machine.calls) == (0, 1, WATCHED)
    assert len(result.stdout.splitlines()) == 1 + 4


def test_kerneld_going_away_ends_the_wait(inspector: Inspector) -> None:
    machine = FakeMachine([[(7, 9)]])
    machine.at_last = machine.theirs.close
    result = inspector.run(machine, *RANGE, "--interval", "50")
    assert result.exit_code == 4
    assert result.stderr.splitlines() == ["inspector: kerneld went away, and the table with it"]
    assert machine.calls[-1] == "detach"


def test_no_daemon(inspector: Inspector) -> None:
    status, line = inspector.fail(None, *RANGE)
    assert status == 3
    assert "kerneld start" in line


@pytest.mark.parametrize("args", [[hex(BASE), "+16K"], [], ["[heap]"], ["--contents", hex(BASE)]])
def test_no_such_process(inspector: Inspector, args: list[str]) -> None:
    machine = FakeMachine()
    # Larger than any pid is.
    assert inspector.fail(machine, "8388607", *args) == (5, "inspector: kerneld has no process 8388607")
    assert "start" not in machine.calls
    assert machine.calls[-1] == "detach"


@pytest.mark.parametrize("args", [["999"], ["999", "heap"]])
def test_a_real_process_that_is_not_to_be_seen(
    inspector: Inspector, monkeypatch: pytest.MonkeyPatch, args: list[str]
) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    status, line = inspector.fail(FakeMachine(), *args)
    assert status == 6
    assert "another user's" in line


@pytest.mark.parametrize(("code", "status"), [(errno.EPERM, 6), (errno.EBUSY, 7), (errno.EINVAL, 1), (errno.ENOMEM, 1)])
def test_a_refused_open(inspector: Inspector, code: int, status: int) -> None:
    machine = FakeMachine()
    machine.refuse = code
    assert inspector.fail(machine, *RANGE)[0] == status
    assert "close" not in machine.calls


@pytest.mark.parametrize(("code", "line"), [(errno.EBUSY, "busy: "), (errno.EINVAL, "kerneld refuses: ")])
def test_a_refusal_says_what_kerneld_says_of_it(inspector: Inspector, code: int, line: str) -> None:
    machine = FakeMachine()
    machine.refuse, machine.explanation = code, "process 17 (python) has a table open,\x1b of process 4"
    assert inspector.fail(machine, *RANGE)[1] == f"inspector: {line}process 17 (python) has a table open,? of process 4"


def test_version(inspector: Inspector) -> None:
    assert inspector.run(None, "--version").stdout.startswith("inspector ")


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["zero"],
        ["0"],
        [str(PID), hex(BASE)],
        [str(PID), hex(BASE), hex(BASE)],
        [str(PID), "7f00abcd000g", "+4K"],
        [str(PID), "1000-3000", "+4K"],
        [str(PID), "3000-1000"],
        [str(PID), "7ffffffef000-800000000000000"],
        [str(PID), hex(BASE), "4Q"],
        [str(PID), hex(BASE), "+4Q"],
        [str(PID), "0x0", "0x10000000000000000"],
        [str(PID), hex(BASE), "+4K", "more"],
        [*RANGE, "--interval", "0"],
        [*RANGE, "--interval", "soon"],
        [*RANGE, "--interval", "nan"],
        [*RANGE, "--socket", ""],
        [*RANGE, "--contents", "page"],
        [*RANGE, "--nonsense"],
    ],
)
def test_wrong_usage_is_one_line_and_needs_no_kerneld(inspector: Inspector, args: list[str]) -> None:
    status, line = inspector.fail(None, *args)
    assert status == 2
    assert "--help" in line


@pytest.mark.parametrize(
    "words",
    [
        [f"{BASE:x}-{BASE + 0x4000:x}"],
        [f"{BASE:#x}-{BASE + 0x4000:#x}"],
        [f"{BASE:x}", f"{BASE + 0x4000:x}"],
        [f"{BASE:x}", "+16384"],
        [f"{BASE:x}", "+0x4000"],
    ],
    ids=" ".join,
)
def test_a_range_as_it_is_copied_from_maps(inspector: Inspector, words: list[str]) -> None:
    machine = FakeMachine([[(3, 0)]])
    result = inspector.run(machine, str(PID), *words, "--once")
    assert (result.exit_code, machine.span, result.stderr) == (0, (BASE, BASE + 0x4000), "")


def test_an_unaligned_range_is_rounded_and_that_is_said(inspector: Inspector) -> None:
    machine = FakeMachine([[(3, 0)]])
    result = inspector.run(machine, str(PID), hex(BASE + 1), hex(BASE + 0x1001), "--once")
    assert machine.span == (BASE, BASE + 0x2000)
    assert result.stderr == f"inspector: rounded outward to whole pages: {BASE:#x} {BASE + 0x2000:#x}\n"


@pytest.mark.parametrize(
    ("args", "span"),
    [
        (["[heap]"], (0xE0_3000, 0xE0_5000)),
        (["[heap]", "+4K"], (0xE0_3000, 0xE0_4000)),
        (["[heap]", "0xe10000"], (0xE0_3000, 0xE1_0000)),
        (["program"], (0x40_0000, 0x40_2000)),
        (["/opt/app/program"], (0x40_0000, 0x40_2000)),
    ],
)
def test_a_name_stands_for_its_mapping(inspector: Inspector, args: list[str], span: tuple[int, int]) -> None:
    machine = FakeMachine([[(3, 0)]])
    assert inspector.run(machine, str(PID), *args, "--once").exit_code == 0
    assert machine.span == span


def test_what_the_kernel_cuts_is_said(inspector: Inspector) -> None:
    machine = FakeMachine([[(3, 0)]])
    result = inspector.run(machine, str(PID), "[stack]", "--once", "--json")
    (shown,) = json_prints(result)
    assert (shown["start"], shown["end"], len(shown["entries"])) == (0x7FFC_0000_0000, 0x7FFC_0080_0000, 2048)
    assert result.stderr == "inspector: cut to 8 MiB: the range shown ends at 0x7ffc00800000\n"


@pytest.mark.parametrize("words", [["700000000000", "800000000000"], ["0x700000000000-0xffffffffffffffff"]])
def test_a_range_is_cut_before_its_end_is_checked(inspector: Inspector, words: list[str]) -> None:
    """As shadowpt_open does."""
    machine = FakeMachine([[(3, 0)]])
    result = inspector.run(machine, str(PID), *words, "--once")
    assert (result.exit_code, machine.span) == (0, (0x7000_0000_0000, 0x7000_0080_0000))
    assert "cut to 8 MiB: the range shown ends at 0x700000800000\n" in result.stderr


def test_no_mapping_of_that_name(inspector: Inspector) -> None:
    status, line = inspector.fail(FakeMachine(), str(PID), "[vdso]")
    assert status == 9
    assert "[vdso]" in line


def test_a_pid_alone_lists_its_maps(inspector: Inspector) -> None:
    machine = FakeMachine()
    lines = inspector.run(machine, str(PID)).stdout.splitlines()
    assert len(lines) == 4
    assert lines[1].split() == ["0x000000e03000", "0x000000e05000", "rw-p", "8", "KiB", "[heap]"]
    assert "open" not in machine.calls
    (listed,) = json_prints(inspector.run(FakeMachine(), str(PID), "--json"))
    assert [mapping["name"] for mapping in listed["maps"]] == ["/opt/app/program", "[heap]", "", "[stack]"]


@pytest.mark.parametrize("args", [[str(PID)], RANGE])
def test_contents(inspector: Inspector, args: list[str]) -> None:
    machine = FakeMachine([[(7, 9)]], at_last=lambda: None)
    machine.frames = {9: b"Hello, page!" + bytes(4084)}
    result = inspector.run(machine, *args, "--contents", hex(BASE + 5))
    first, *_rest, last = result.stdout.splitlines()
    assert first.startswith("7f0000000000  48 65 6c 6c 6f")
    assert last == "7f0000001000"
    assert (result.exit_code, machine.calls) == (0, ["open", "start", "page_contents", "close", "detach"])


def test_contents_as_json(inspector: Inspector) -> None:
    machine = FakeMachine([[(7, 9)]], at_last=lambda: None)
    machine.frames = {9: b"\xab" * PAGE_SIZE}
    (shown,) = json_prints(inspector.run(machine, str(PID), "--contents", hex(BASE), "--json"))
    assert (shown["vaddr"], shown["pfn"], bytes.fromhex(shown["contents"])) == (BASE, 9, machine.frames[9])


def test_a_frame_that_goes_is_looked_up_anew(inspector: Inspector) -> None:
    machine = FakeMachine([[(7, 8)], [(7, 9)]], at_last=lambda: None)
    machine.frames = {9: bytes(PAGE_SIZE)}
    assert inspector.run(machine, str(PID), "--contents", hex(BASE)).exit_code == 0
    assert machine.calls.count("page_contents") == 2


@pytest.mark.parametrize(("cells", "word"), [([(3, 0)], "no frame"), ([(0, 0)], "not allocated"), ([(7, 8)], "frame")])
def test_contents_of_a_page_without_a_frame(inspector: Inspector, cells: list[tuple[int, int]], word: str) -> None:
    machine = FakeMachine([cells], at_last=lambda: None)
    status, line = inspector.fail(machine, str(PID), "--contents", hex(BASE))
    assert status == 8
    assert word in line
    assert machine.calls[-2:] == ["close", "detach"]


def test_contents_outside_the_range_is_wrong_usage(inspector: Inspector) -> None:
    assert inspector.fail(FakeMachine(), *RANGE, "--contents", hex(BASE + 0x4000))[0] == 2


@pytest.mark.parametrize(
    ("no_color", "term", "coloured"), [("", "xterm", True), ("1", "xterm", False), ("", "dumb", False)]
)
def test_colours_on_a_terminal_only(
    inspector: Inspector, monkeypatch: pytest.MonkeyPatch, no_color: str, term: str, coloured: bool
) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("TERM", term)
    result = inspector.run(FakeMachine([[(3, 0)]]), *RANGE, "--once", color=True)
    assert ("\x1b[" in result.stdout) is coloured
    assert "\x1b[" not in inspector.run(FakeMachine([[(3, 0)]]), *RANGE, "--once").stdout


def test_the_socket_is_passed_on(inspector: Inspector) -> None:
    inspector.run(FakeMachine(), str(PID), "--socket", "/run/elsewhere.sock")
    assert inspector.socket_path == "/run/elsewhere.sock"


def test_help_lists_every_status(inspector: Inspector) -> None:
    result = inspector.run(None, "--help")
    assert result.exit_code == 0
    words = result.stdout.split("Exit status:")[1].split()
    assert {int(word) for word in words if word.isdigit()} >= {int(status) for status in Status}
    assert max(map(len, result.stdout.splitlines())) <= 120


@pytest.mark.parametrize(
    "words",
    [
        ["--follow", "4242", "--events"],
        ["--follow", "4242", "--also", "7"],
        ["--follow", "4242", "--contents", hex(BASE)],
        ["4242", hex(BASE), "+4K", "--also", "7", "--events"],
        ["4242", "--also", "7"],
        ["--follow"],
    ],
)
def test_what_excludes_each_other(inspector: Inspector, words: list[str]) -> None:
    assert inspector.fail(None, *words)[0] == 2
