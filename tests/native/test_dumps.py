"""Core dumps of programs inside: the host writes them, and they have the program's memory, as outside."""

from __future__ import annotations

import re
import resource
import shlex
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from shared.client import Process
from shared.uapi.mman import Madv
from shared.uapi.page import PAGE_SIZE
from tests.native.breakpoint import Breakpoint
from tests.native.conftest import NativeDaemon
from tests.native.cores import Core, read_core
from tests.native.inside import End, Inside, compile_c
from tests.native.processes import address_of, agent_of, wait_for_end

PATTERN = Path("/proc/sys/kernel/core_pattern")
TEXTS = {
    "global": "written where the program's data are",
    "heap": "in the heap",
    "behind": "dumped behind it",
    "shared": "written by a child",
    "own_file": "own page of a file",
    "closed": "may not be read",
    "swapped": "shared and swapped out",
    "stack": "depth 0",
}
"""What lies at the addresses that tests/native/c/dumps.c prints."""


def _run(inside: Inside, argv: list[str], directory: Path, limit: str = "unlimited", *, is_inside: bool = True) -> End:
    """Run a program with a limit of its core, in a new directory, and return how it has ended."""
    directory.mkdir()
    command = inside.command(argv) if is_inside else argv
    words = ["sh", "-c", f"ulimit -c {limit} && exec {shlex.join(command)}"]
    return inside.outside(words, directory=directory)


def _find_core(directory: Path) -> Path | None:
    return next(directory.glob("core*"), None)


def _need_a_core_file() -> None:
    pattern = PATTERN.read_text().strip()
    if not re.fullmatch(r"core[%\w.-]*", pattern):
        pytest.skip(f"this host puts no core file where the program runs: its core_pattern is {pattern}")
    if resource.getrlimit(resource.RLIMIT_CORE)[1] != resource.RLIM_INFINITY:
        pytest.skip("the hard limit of core files is not unlimited here")


def _dump(inside: Inside, argv: list[str], directory: Path, *, is_inside: bool) -> tuple[End, Core]:
    end = _run(inside, argv, directory, is_inside=is_inside)
    core = _find_core(directory)
    assert core is not None, end
    return end, read_core(core)


def _texts(end: End, core: Core) -> dict[str, str | None]:
    """What the core has at the addresses that the program has printed."""
    places = dict(line.split() for line in end.output.splitlines())
    return {name: core.text_at(int(places[name])) for name in (*TEXTS, "left_out")}


@pytest.mark.parametrize("how", ["abort", "null", "trap", "killed"])
def test_a_core_has_what_one_outside_has(inside: Inside, programs: dict[str, Path], tmp_path: Path, how: str) -> None:
    _need_a_core_file()
    argv = [str(programs["dumps"]), how]
    ends, cores = zip(*(_dump(inside, argv, tmp_path / str(i), is_inside=bool(i)) for i in (0, 1)), strict=True)
    assert ends[0].status == ends[1].status < 0
    for end, core in zip(ends, cores, strict=True):
        assert _texts(end, core) == {**TEXTS, "left_out": None}
        stack = int(dict(line.split() for line in end.output.splitlines())["stack"])
        assert 0 <= stack - core.rsp < 4096
    # The host writes nothing of memory whose key the thread may not read.
    keyed = [int(dict(line.split() for line in end.output.splitlines())["keyed"]) for end in ends]
    facts = [
        (core.signo, core.code, core.rip % 4096, core.text_at(place)) for core, place in zip(cores, keyed, strict=True)
    ]
    assert facts[0] == facts[1]


def test_a_core_of_a_program_whose_other_threads_map_fork_and_crash(
    inside: Inside, programs: dict[str, Path], tmp_path: Path
) -> None:
    _need_a_core_file()
    end, core = _dump(inside, [str(programs["dumps"]), "busy"], tmp_path / "d", is_inside=True)
    assert end.status == -signal.SIGSEGV
    places = {name: int(place) for name, place in map(str.split, end.output.splitlines())}
    expected = {name: text for name, text in TEXTS.items() if name in places}
    assert {name: core.text_at(places[name]) for name in expected} == expected


def test_a_page_left_out_is_nowhere_in_the_core(inside: Inside, programs: dict[str, Path], tmp_path: Path) -> None:
    _need_a_core_file()
    _run(inside, [str(programs["dumps"]), "null"], tmp_path / "d")
    core = _find_core(tmp_path / "d")
    assert core is not None
    content = core.read_bytes()
    assert b"dumped behind it" in content
    assert b"not to be dumped" + bytes(100) not in content


def test_without_a_limit_there_is_no_core(inside: Inside, programs: dict[str, Path], tmp_path: Path) -> None:
    if PATTERN.read_text().startswith("|"):
        pytest.skip("this host gives each core to a program, whatever the limit is")
    assert _run(inside, [str(programs["dumps"]), "abort"], tmp_path / "d", "0").status == -signal.SIGABRT
    assert not list((tmp_path / "d").iterdir())


def test_the_parent_of_a_borrower_that_dumps_goes_on(inside: Inside, programs: dict[str, Path], tmp_path: Path) -> None:
    _need_a_core_file()
    argv = [str(programs["dumps"]), "vfork"]
    ends = [_run(inside, argv, tmp_path / str(i), is_inside=bool(i)) for i in (0, 1)]
    assert ends[0] == ends[1]
    assert ends[0].output == f"the child: signal 11, core 1; {TEXTS['global']}\n"


def test_the_first_process_of_a_pid_namespace_does_not_end_by_a_signal(inside: Inside) -> None:
    words = ["unshare", "--pid", "--fork", "sh", "-c", "kill -ABRT $$; kill -QUIT $$; kill -SEGV $$; echo goes on"]
    if subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("this host gives no PID namespace")
    assert inside.agrees(words).output == "goes on\n"


def _stopped_as_it_dumps(
    inside: Inside, programs: dict[str, Path], directory: Path
) -> tuple[subprocess.Popen[str], dict[str, int]]:
    """Return a program that is stopped before it gives its core the memory, and the addresses that it has printed."""
    _need_a_core_file()
    command = f"cd {directory} && ulimit -c unlimited && exec {programs['dumps']} waits"
    process = inside.start(["sh", "-c", command])
    assert process.stdin is not None
    assert process.stdout is not None
    places = dict.fromkeys(TEXTS, 0)
    while "end" not in places:
        name, place = process.stdout.readline().split()
        places[name] = int(place)
    try:
        dumping = Breakpoint(process.pid, address_of("make_memory_true"))
    except PermissionError:
        pytest.skip("this process may not trace its own children")
    process.stdin.write("b")
    process.stdin.flush()
    dumping.stop_there()
    return process, places


def test_nobody_waits_for_a_program_that_is_stopped_as_it_dumps(
    inside: Inside, native_daemon: NativeDaemon, programs: dict[str, Path], tmp_path: Path
) -> None:
    """Its page is swapped out meanwhile; the core has the page all the same."""
    process, places = _stopped_as_it_dumps(inside, programs, tmp_path)
    inspector = Process.attach(str(native_daemon.path))
    assert inspector.process_madvise(process.pid, [(places["behind"], PAGE_SIZE)], Madv.PAGEOUT) == PAGE_SIZE
    assert "VmSwap:\t       4 kB" in inspector.read_proc(f"{process.pid}/status").decode()
    inspector.close()
    process.send_signal(signal.SIGCONT)
    process.communicate()
    assert process.returncode == -signal.SIGABRT
    core = _find_core(tmp_path)
    assert core is not None
    assert {name: read_core(core).text_at(places[name]) for name in TEXTS} == TEXTS


def test_a_program_that_is_killed_as_it_dumps_leaves_nothing(
    inside: Inside, native_daemon: NativeDaemon, programs: dict[str, Path], tmp_path: Path
) -> None:
    process, _ = _stopped_as_it_dumps(inside, programs, tmp_path)
    agent = agent_of(process.pid)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert _find_core(tmp_path) is None
    wait_for_end(agent)
    inspector = Process.attach(str(native_daemon.path))
    with pytest.raises(FileNotFoundError):
        inspector.read_proc(f"{process.pid}/status")
    inspector.close()


@pytest.mark.slow
def test_a_debugger_reads_the_core(inside: Inside, tmp_path: Path) -> None:
    _need_a_core_file()
    if shutil.which("gdb") is None:
        pytest.skip("there is no gdb to read a core")
    program = compile_c(Path(__file__).parent / "c" / "dumps.c", tmp_path / "dumps", "-g")
    _run(inside, [str(program), "abort"], tmp_path / "d")
    core = _find_core(tmp_path / "d")
    said = subprocess.run(
        ["gdb", "-batch", "-nx", "-ex", "bt", str(program), str(core)], capture_output=True, text=True, check=False
    )
    frames = re.findall(r"^#\d+.* in (\w+) \(", said.stdout, re.MULTILINE)
    assert frames[-5:] == ["end", "end", "end", "end", "main"], said
