"""The target's tour and the demonstration, with a real kerneld: what each step does, and every way to end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from shared.client import Process, realmem
from shared.uapi.page import PAGE_SIZE
from shared.uapi.shadowpt import SHADOW_PTE, Spte, table_bytes
from target.pace import PROMPT
from target.scenarios import TOUR
from target.scenarios.huge import START as HUGE_START
from target.stage import Window
from tests.support.patience import SECONDS

WINDOW = Window()
ROOT = Path(__file__).resolve().parents[2]
MACHINE = ("--ram", "48M", "--swap", "16M")
"""Small, so that the OOM killer comes soon."""


@contextmanager
def running(words: Sequence[str], socket: Path, **more: str) -> Iterator[subprocess.Popen[str]]:
    """Run a program of the project on `socket`, with `more` in its environment; it is gone afterwards."""
    # What a killed target leaves is in the tests' own directory.
    own = {"KERNELD_SOCKET": str(socket), "PYTHONPATH": str(ROOT), "TMPDIR": str(socket.parent)}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", *words],
        env={**os.environ, **own, **more},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def running_kerneld(directory: Path) -> Iterator[Path]:
    """Run a kerneld that checks its invariants after every call, and yield its socket."""
    directory.mkdir(mode=0o700)
    path = directory / "kerneld.sock"
    kerneld = [sys.executable, "-P", "-m", "kerneld"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    log = directory / "log"
    with log.open("w") as output:
        start = subprocess.run(
            [*kerneld, "start", "--socket", str(path), "--detach", "--check-invariants", *MACHINE],
            env=environment,
            stdout=output,
            stderr=output,
            check=False,
        )
    assert start.returncode == 0, log.read_text()
    try:
        yield path
    finally:
        stop = subprocess.run(
            [*kerneld, "stop", "--socket", str(path)], env=environment, capture_output=True, check=False
        )
    assert stop.returncode in (0, 3)


@pytest.fixture(scope="module")
def socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The socket of a kerneld that the tests of this file share."""
    with running_kerneld(tmp_path_factory.mktemp("shared") / "kerneld") as path:
        yield path


@pytest.fixture
def own_socket(tmp_path: Path) -> Iterator[Path]:
    """The socket of a kerneld that is this test's alone."""
    with running_kerneld(tmp_path / "kerneld") as path:
        yield path


class Table:
    """The shadow table of the window of one process, in this process's own memory."""

    def __init__(self, socket: Path, pid: int) -> None:
        self._process = Process.attach(str(socket))
        self._length = table_bytes(WINDOW.start, WINDOW.end)
        self._entries = realmem.map_anonymous(self._length)
        self._process.shadowpt_open(pid, WINDOW.start, WINDOW.end, self._entries)
        self._process.shadowpt_start()

    def read(self) -> list[tuple[int, int]]:
        """Return pfn and flags of each page."""
        raw = self._process.snapshot()[: WINDOW.pages * SHADOW_PTE.size]
        return [(pfn, flags) for _vaddr, pfn, flags in SHADOW_PTE.iter_unpack(raw)]

    def counts(self) -> tuple[int, int, int]:
        """Return how many pages are allocated, anonymous, mapped."""
        counter = Counter(flag for _pfn, flags in self.read() for flag in Spte if flags & flag)
        return counter[Spte.VADDR_ALLOCATED], counter[Spte.VADDR_ANONYMOUS], counter[Spte.PTE_MAPPED]

    def __enter__(self) -> Table:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.shadowpt_close()
        self._process.close()
        realmem.unmap(self._entries, self._length)


def free_frames(socket: Path) -> int:
    """Return MemFree, with the unused page cache, in KiB, as seen by a process that is not there before and after."""
    code = (
        "from shared.client import Process\n"
        "text = Process.attach().read_proc('kerneld/status').decode()\n"
        "status = dict(line.split(':') for line in text.splitlines())\n"
        "print(sum(int(status[key].split()[0]) for key in ('MemFree', 'CachedUnused')))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "KERNELD_SOCKET": str(socket), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(result.stdout)


def read_to_prompt(process: subprocess.Popen[str]) -> list[str]:
    """Return the lines up to the next prompt, or to the end."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        if line.strip() == PROMPT:
            break
        lines.append(line.rstrip("\n"))
    return lines


def read_past(process: subprocess.Popen[str], start: str) -> None:
    """Read lines until one begins with `start`."""
    assert process.stdout is not None
    assert any(line.startswith(start) for line in process.stdout), "the program has ended"


def press_enter(process: subprocess.Popen[str]) -> list[str]:
    """Press Enter and return the lines up to the next prompt: the step is done then."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return read_to_prompt(process)


def run_target(socket: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    with running(["target", *arguments], socket) as process:
        out, err = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def test_the_whole_tour_ends_by_itself_and_gives_all_back(own_socket: Path) -> None:
    run_target(own_socket, "--delay", "0", "--scenario", "exec")
    before = free_frames(own_socket)

    result = run_target(own_socket, "--delay", "0")

    assert (result.returncode, result.stderr) == (0, "")
    assert [line.split()[2].rstrip(":") for line in result.stdout.splitlines() if line.startswith("== ")] == [
        scenario.name for scenario in TOUR
    ]
    # The page cache keeps what it has read of files that are gone: a second tour takes as much as the first gives back.
    after = free_frames(own_socket)
    assert run_target(own_socket, "--delay", "0").returncode == 0
    assert free_frames(own_socket) == after <= before


@pytest.mark.parametrize("scenario", TOUR, ids=lambda scenario: scenario.name)
def test_each_scenario_can_be_played_alone(scenario: object, socket: Path) -> None:
    name = getattr(scenario, "name", "")
    result = run_target(socket, "--delay", "0", "--scenario", name)

    assert (result.returncode, result.stderr) == (0, "")


def test_a_write_through_a_null_pointer_is_a_real_death(own_socket: Path) -> None:
    """A shell shows 139; the memory is given back, and the program's own directory is gone."""
    run_target(own_socket, "--delay", "0", "--scenario", "null-write")
    before = free_frames(own_socket)

    result = run_target(own_socket, "--delay", "0", "--scenario", "null-write")

    assert (result.returncode, result.stderr) == (-signal.SIGSEGV, "")
    assert free_frames(own_socket) == before
    assert not list(own_socket.parent.glob("kerneld-target-*"))
    shell = subprocess.run(
        ["/bin/sh", "-c", f"{sys.executable} -P -m target --delay 0 --scenario null-write >&2; echo $?"],
        env={**os.environ, "KERNELD_SOCKET": str(own_socket), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert shell.stdout == "139\n"


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("demand", [(8, 8, 0), (8, 8, 1), (8, 8, 3), (8, 8, 3), (0, 0, 0)]),
        ("hole", [(8, 8, 8), (6, 6, 6), (8, 8, 6), (0, 0, 0)]),
        ("file-shared", [(4, 0, 0), (4, 0, None), (4, 0, None), (4, 0, None), (0, 0, 0)]),
        ("file-private", [(4, 0, 0), (4, 0, None), (4, 0, None), (0, 0, 0)]),
        ("protect", [(4, 4, 4), (4, 4, 4), (4, 4, 4), (4, 4, 4), (0, 0, 0)]),
        ("exec", [(4, 4, 4), (0, 0, 0)]),
    ],
)
def test_the_table_changes_with_each_step(name: str, counts: list[tuple[int, int, int | None]], socket: Path) -> None:
    with running(["target", "--step", "--scenario", name], socket) as target:
        read_to_prompt(target)
        with Table(socket, target.pid) as table:
            assert table.counts() == (0, 0, 0)
            press_enter(target)
            seen = []
            for _step in counts:
                press_enter(target)
                seen.append(table.counts())
            for have, want in zip(seen, counts, strict=True):
                assert have[:2] == want[:2]
                assert want[2] in (None, have[2])
                assert want[2] is not None or have[2] >= 1


def test_pages_that_are_only_read_share_the_zero_page(socket: Path) -> None:
    with running(["target", "--step", "--scenario", "demand"], socket) as target:
        read_to_prompt(target)
        with Table(socket, target.pid) as table:
            for _press in range(4):
                press_enter(target)
            written, _unused, first, second = [pfn for pfn, _flags in table.read()[:4]]
            assert first == second not in (0, written)
            press_enter(target)
            assert table.read()[2][0] not in (first, written)
            assert table.read()[3][0] == second


def test_fork_copies_the_page_that_the_parent_writes_while_it_is_shared(socket: Path) -> None:
    with running(["target", "--step", "--scenario", "fork"], socket) as target:
        read_to_prompt(target)
        with Table(socket, target.pid) as table:
            press_enter(target)
            press_enter(target)
            frames = [pfn for pfn, _flags in table.read()[:4]]
            # fork, time to watch the child, the child's write, the parent's write to the page that the child left.
            for _press in range(4):
                press_enter(target)
                assert [pfn for pfn, _flags in table.read()[:4]] == frames
            press_enter(target)
            after = [pfn for pfn, _flags in table.read()[:4]]
            assert after[1] not in frames
            assert after[:1] + after[2:] == frames[:1] + frames[2:]


def test_the_table_is_empty_and_stays_when_the_target_exits(socket: Path) -> None:
    with running(["target", "--step", "--scenario", "exit"], socket) as target:
        read_to_prompt(target)
        with Table(socket, target.pid) as table:
            press_enter(target)
            press_enter(target)
            assert table.counts() == (4, 4, 4)
            press_enter(target)
            assert target.wait() == 0
            assert table.counts() == (0, 0, 0)


@pytest.mark.parametrize("signo", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", ["demand", "fork"])
def test_a_signal_ends_the_tour_as_that_signal(name: str, signo: signal.Signals, socket: Path) -> None:
    with running(["target", "--step", "--scenario", name], socket) as target:
        read_to_prompt(target)
        # In the middle of the fork scenario there is a child too.
        for _press in range(4):
            press_enter(target)
        children = Path(f"/proc/{target.pid}/task/{target.pid}/children").read_text().split()
        assert len(children) == (name == "fork")
        target.send_signal(signo)
        _out, err = target.communicate()
    assert target.returncode == -signo
    assert err == f"target: ended by {signo.name}\n"
    assert not any(Path("/proc", child).exists() for child in children)


def test_sigterm_ends_a_tour_that_waits_for_time_to_pass(socket: Path) -> None:
    with running(["target", "--delay", "1000"], socket) as target:
        read_past(target, "  Watch ")
        target.terminate()
        _out, err = target.communicate()
    assert (target.returncode, err) == (-signal.SIGTERM, "target: ended by SIGTERM\n")


def test_a_loop_goes_on_until_a_signal(socket: Path) -> None:
    with running(["target", "--loop", "--delay", "0"], socket) as target:
        for _round in range(3):
            read_past(target, "== 1/")
        target.send_signal(signal.SIGINT)
        _out, err = target.communicate()
    assert (target.returncode, err) == (-signal.SIGINT, "target: ended by SIGINT\n")


def test_the_end_of_input_ends_the_tour(socket: Path) -> None:
    with running(["target", "--step"], socket) as target:
        _out, err = target.communicate("\n\n")
    assert (target.returncode, err) == (0, "")


@pytest.mark.parametrize("arguments", [["--step"], ["--delay", "1000"]])
def test_the_end_of_kerneld_ends_the_tour_at_once(arguments: list[str], own_socket: Path) -> None:
    with running(["target", *arguments], own_socket) as target:
        read_past(target, "  Watch ")
        stop = subprocess.run(
            [sys.executable, "-P", "-m", "kerneld", "stop", "--socket", str(own_socket)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            check=False,
        )
        assert stop.returncode == 0
        # Input that stays open: it is kerneld's end that is noticed.
        assert target.wait() == 4
        assert target.stderr is not None
        assert len(target.stderr.read().splitlines()) == 1


@pytest.mark.parametrize(("name", "left"), [("hole", 0), ("file-shared", 1)])
def test_a_killed_tour_leaves_a_directory_only_while_it_has_a_file(
    name: str, left: int, socket: Path, tmp_path: Path
) -> None:
    with running(["target", "--step", "--scenario", name], socket, TMPDIR=str(tmp_path)) as target:
        read_to_prompt(target)
        press_enter(target)
        assert len(list(tmp_path.iterdir())) == left
        press_enter(target)


def test_the_exact_command_that_is_printed_starts_an_inspector(socket: Path) -> None:
    with running(["target", "--step", "--scenario", "demand"], socket) as target:
        command = read_to_prompt(target)[-1].strip()
        assert f" {target.pid} {WINDOW.start:#x} {WINDOW.start + WINDOW.pages * PAGE_SIZE:#x}" in command
        environment = {name: value for name, value in os.environ.items() if name != "KERNELD_SOCKET"}
        result = subprocess.run(
            f"{command} --once --json", shell=True, env=environment, capture_output=True, text=True, check=False
        )
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout.startswith("{")


def prints_from_now_on(inspector: subprocess.Popen[str], shown: list[dict[str, Any]]) -> None:
    """Read the prints into `shown`, up to one that began after this call."""
    assert inspector.stdout is not None
    now = datetime.now().astimezone()
    for line in inspector.stdout:
        shown.append(json.loads(line))
        if datetime.fromisoformat(shown[-1]["time"]) > now:
            return


def test_with_wait_one_command_follows_the_whole_tour(own_socket: Path) -> None:
    """The command that is printed, as it is, shows heap, stack, child, execve, huge pages, swap and the end."""
    with running(["target", "--wait", "--step"], own_socket) as target:
        assert target.stdout is not None
        before: list[str] = []
        while not before or "Waiting for an inspector" not in before[-1]:
            before.append(target.stdout.readline())
            assert before[-1], before
        assert not any(line.startswith("  1. ") for line in before)
        (command,) = (line.strip() for line in before if "inspector --follow" in line)
        environment = {name: value for name, value in os.environ.items() if name != "KERNELD_SOCKET"}
        words = f"exec env {command} --interval 0.05 --json"
        shown: list[dict[str, Any]] = []
        with subprocess.Popen(
            words, shell=True, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as inspector:
            rest = read_to_prompt(target)
            assert rest[0] == f"  Process {inspector.pid} has opened a table of this process."
            while not any("exit: the address space" in line for line in rest[-3:]):
                prints_from_now_on(inspector, shown)
                rest += press_enter(target)
            prints_from_now_on(inspector, shown)
            press_enter(target)
            assert target.wait(SECONDS) == 0
            shown += map(json.loads, inspector.communicate(timeout=SECONDS)[0].splitlines())
    assert inspector.returncode == 0
    assert not any("./inspector" in line and "--also" not in line for line in rest)
    moves = [one for one in shown if "moved" in one]
    causes = [one["moved"].partition("@")[0].partition(" ")[0] for one in moves]
    assert {"mmap", "store/fault", "fork", "execve"} <= set(causes)
    assert "" not in causes
    assert {WINDOW.start, HUGE_START} < {one["start"] for one in shown}
    assert len({one["pid"] for one in shown}) >= 2
    # The heap, the stack and the image: each at its place, and in this order.
    before_execve, image = moves[: causes.index("execve")], moves[causes.index("execve") + 1]
    heap = next(at for at, one in enumerate(before_execve) if one["start"] >> 32 == 0x5555)
    assert any(one["moved"].startswith("store/fault@0x7ff") for one in before_execve[heap:])
    assert image["start"] >> 32 == 0x5555
    assert shown[-1]["exited"]


def test_pages_that_reclaim_takes_come_back(own_socket: Path) -> None:
    with running(["target", "--step", "--scenario", "swap"], own_socket) as target:
        read_to_prompt(target)
        with Table(own_socket, target.pid) as table:
            press_enter(target)
            press_enter(target)
            assert table.counts() == (4, 4, 4)
            press_enter(target)
            assert table.counts() == (4, 4, 2)
            press_enter(target)
            assert table.counts() == (4, 4, 3)


def test_the_oom_killer_takes_the_child_and_the_tour_goes_on(own_socket: Path) -> None:
    with running(["target", "--delay", "0", "--scenario", "oom"], own_socket) as target:
        out, err = target.communicate(timeout=SECONDS)
    assert (target.returncode, err) == (0, "")
    assert "was killed by signal 9 (SIGKILL)" in out
    assert "Memory reads parent." in out
