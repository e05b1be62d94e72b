"""ptrace(2) of programs inside: a tracer, strace and gdb show the same inside and outside."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.native.inside import End, Inside, compile_c, need, need_attach

_LIMIT = "300"
"""Seconds after which a tracer that waits for ever is ended."""

_GDB = """
set confirm off
backtrace -1
print text
set var text = "gdb"
print text
call add(5)
detach
break add
run
backtrace
info args
print total
next
step
finish
delete
watch total
continue
print $rip - (long) add < 40
delete
call add(100)
handle SIGUSR1 stop print
continue
print signals
set var total = 7
print total
catch fork
continue
print $orig_rax
delete
catch vfork
continue
delete
catch exec
set follow-fork-mode child
continue
info inferiors
kill
run
"""
"""It attaches to a program that waits, leaves it, and runs the same program from its start."""


@pytest.fixture(scope="module")
def debugged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = Path(__file__).parent / "c" / "debugged.c"
    return compile_c(source, tmp_path_factory.mktemp("debugged") / "debugged", "-g", "-O0", "-no-pie")


@pytest.mark.parametrize("tracer", ["tracer", "tracer_tasks"])
def test_a_tracer_sees_the_same_as_outside(tracer: str, inside: Inside, programs: dict[str, Path]) -> None:
    end = inside.agrees([str(programs[tracer]), _LIMIT])
    assert end.status == 0
    assert len(end.output.splitlines()) > 40


def _read_calls(prefix: Path) -> list[str]:
    """Return what `strace -ff` has written of each process, without numbers that differ from run to run.

    Whether a child ends before its parent waits is chance: the lines of SIGCHLD come last.
    """
    files = sorted(prefix.parent.glob(prefix.name + ".*"), key=lambda path: int(path.suffix[1:]))
    lines = []
    for path in files:
        for line in path.read_text().splitlines():
            # What kerneld does not have, and where the heap is.
            if re.match(r"rseq|getrandom|brk", line):
                continue
            told = re.sub(r"0x[0-9a-f]+|/\* \d+ vars \*/|si_[us]time=\d+( /\* [^*]+ \*/)?|\b(NULL)\b", "X", line)
            for number, other in enumerate(files):
                told = re.sub(rf"\b{other.suffix[1:]}\b", f"pid {number}", told)
            lines.append(re.sub(r" +", " ", told))
    return sorted(lines, key=lambda line: "--- SIGCHLD" in line)


def test_strace_shows_the_same_calls_as_outside(inside: Inside, debugged: Path, tmp_path: Path) -> None:
    need("strace")
    seen = []
    for name, run in (("in", inside.run), ("out", inside.outside)):
        end = run(["strace", "-ff", "-o", str(tmp_path / name), str(debugged)])
        assert (end.status, end.output) == (10, "1\n3\n6\n"), end
        seen.append(_read_calls(tmp_path / name))
    assert seen[0] == seen[1]
    assert sum("SIGUSR1" in line for line in seen[0]) == 3


def test_strace_counts_and_changes_calls(inside: Inside, debugged: Path, tmp_path: Path) -> None:
    need("strace")
    end = inside.run(["strace", "-c", "-f", "-o", str(tmp_path / "counts"), str(debugged)])
    assert end.status == 10
    assert re.search(r" 1 +(\d+ )?vfork$", (tmp_path / "counts").read_text(), re.MULTILINE)
    inject = ["strace", "-e", "trace=write,poll", "-e", "inject=write:error=EIO", str(debugged)]
    chance = r"si_pid=\d+|si_[us]time=\d+( /\* [^*]+ \*/)?"
    ends = [re.sub(chance, "", run(inject).errors) for run in (inside.run, inside.outside)]
    assert ends[0] == ends[1]
    assert "(INJECTED)" in ends[0]


def _without_numbers(output: str) -> list[str]:
    """Return what gdb has said, without pids, which differ from run to run."""
    return re.sub(r"process \d+|LWP \d+|0x0*7f[0-9a-f]+", "X", output).splitlines()


def _debug(
    start: Callable[[list[str]], subprocess.Popen[str]], run: Callable[[list[str]], End], argv: list[str]
) -> End:
    """Have gdb attach to a program that waits. Once gdb has left it, it ends well."""
    process = start([argv[-1], "waits"])
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    end = run([*argv[:-1], "-p", str(process.pid)])
    process.communicate("abc")
    assert process.returncode == 4
    return end


def _start_outside(argv: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_gdb_shows_the_same_as_outside(inside: Inside, debugged: Path, tmp_path: Path) -> None:
    need("gdb")
    need_attach()
    script = tmp_path / "script"
    script.write_text(_GDB)
    before = ["-iex", "set auto-solib-add off", "-iex", "set debuginfod enabled off"]
    argv = ["gdb", "-q", "-nx", "-batch", *before, "-x", str(script), str(debugged)]
    end, outside = _debug(inside.start, inside.run, argv), _debug(_start_outside, inside.outside, argv)
    assert _without_numbers(end.output) == _without_numbers(outside.output), end.errors
    assert (end.status, end.errors) == (outside.status, outside.errors)
    for expected in ("in main (argc=2", "Hardware watchpoint 2: total", "Catchpoint 3 (forked process", "exec'd /"):
        assert expected in end.output
