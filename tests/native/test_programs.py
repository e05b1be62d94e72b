"""Unmodified programs, each run inside and outside: the same output, the same status."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from tests.native.inside import Inside, compile_c

SCRIPT = r"""
set -e
cd "$1"
mkdir tree; for i in 1 2 3; do echo "file $i" > tree/$i; done
find tree -type f | sort | xargs cat | sed 's/file/FILE/' | tee all | wc -l
(cd tree && exec ls) | sort -r
trap 'echo trapped' USR1; kill -USR1 $$
x=$(echo sub; exit 0); echo "$x"
false || echo "status $?"
sh -c 'kill -TERM $$' || echo "status $?"
{ sleep 0; exit 7; } & wait $! || echo "status $?"
read -r line < all; echo "$line"; cat <<END
here $((6 * 7))
END
tar cf - tree | gzip | gunzip | tar tf - | sort
exec cat all
"""
PYTHON = """
import json, mmap, os, subprocess, sys, threading
print(json.loads('[1, {"a": null}]'), sum(range(100000)))
threads = [threading.Thread(target=lambda i=i: results.append(i * i)) for i in range(8)]
results = []
[thread.start() for thread in threads], [thread.join() for thread in threads]
print(sorted(results))
print(subprocess.run(["echo", "from a child"], capture_output=True, text=True))
memory = mmap.mmap(-1, 1 << 20)
memory[5] = 6
pid = os.fork()
if not pid:
    memory[5] += 1
    os._exit(3)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), memory[5])
try:
    subprocess.run(["/nowhere"])
except FileNotFoundError as error:
    print(error)
sys.exit(5)
"""


@pytest.mark.parametrize(
    "argv",
    [
        ["true"],
        ["false"],
        ["echo", "one", "two"],
        ["ls", "-ln", "/usr"],
        ["cat", "/etc/passwd"],
        ["cat", "/nowhere"],
        ["sort", "-r", "/etc/group"],
        ["sh", "-c", "kill -9 $$"],
        ["env", "-i", "A=b", "env"],
        ["perl", "-e", "print join(',', map { $_ * 2 } 1 .. 5), qq{\\n}; exit 4"],
        ["awk", "BEGIN { for (i = 0; i < 5; i++) print i, i * i }"],
        ["dd", "if=/dev/zero", "of=/dev/null", "bs=64K", "count=10", "status=none"],
    ],
    ids=lambda argv: "-".join(argv[:2]).replace("/", ""),
)
def test_a_program_is_the_same_inside(inside: Inside, argv: list[str]) -> None:
    if shutil.which(argv[0]) is None:
        pytest.skip(f"this host has no {argv[0]}")
    assert inside.run(argv) == inside.outside(argv)


def test_input_goes_through_pipes(inside: Inside) -> None:
    assert inside.agrees(["tr", "a-z", "A-Z"], "some text\n" * 1000).output.startswith("SOME TEXT")


def test_bash_runs_a_script(inside: Inside, tmp_path: Path) -> None:
    if shutil.which("bash") is None:
        pytest.skip("this host has no bash")
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    within = inside.run(["bash", "-c", SCRIPT, "bash", str(tmp_path / "in")])
    assert within == inside.outside(["bash", "-c", SCRIPT, "bash", str(tmp_path / "out")])
    assert within.status == 0


def test_python_runs(inside: Inside) -> None:
    python = Path("/usr/bin/python3")
    if not python.exists():
        pytest.skip("this host has no /usr/bin/python3")
    assert inside.agrees([str(python), "-c", PYTHON]).status == 5


def test_gcc_compiles_and_links(inside: Inside, tmp_path: Path) -> None:
    source = tmp_path / "hello.c"
    source.write_text('#include <stdio.h>\nint main(void) { puts("compiled inside"); return 6; }\n')
    program = tmp_path / "hello"
    compiler = shutil.which("gcc") or shutil.which("cc")
    assert compiler is not None
    assert inside.run([compiler, "-O2", "-o", str(program), str(source)]).status == 0
    assert inside.agrees([str(program)]).output == "compiled inside\n"


@pytest.mark.parametrize("options", [(), ("-static",), ("-static-pie",), ("-no-pie",)], ids=" ".join)
def test_a_c_program_however_it_is_linked(inside: Inside, tmp_path: Path, options: tuple[str, ...]) -> None:
    source = Path(__file__).parent / "c" / "memory.c"
    program = compile_c(source, tmp_path / "memory", *options)
    assert "in the file: k" in inside.agrees([str(program)], directory=tmp_path).output


def test_signals_are_as_outside(inside: Inside, programs: dict[str, Path]) -> None:
    assert inside.agrees([str(programs["signals"])]).status == -signal.SIGUSR1


def test_alternate_stacks(inside: Inside, programs: dict[str, Path]) -> None:
    output = inside.agrees([str(programs["altstack"])]).output
    assert "in its frame: room 65536 80000001" not in output.partition("flags 80000000")[0]
    assert "in its frame: room 65536 80000001" in output


def test_signals_that_come_while_they_are_blocked(inside: Inside, programs: dict[str, Path]) -> None:
    output = inside.agrees([str(programs["pending"])]).output
    assert output.count("pending 1 status") == 20
    assert output.count("unblocked: got") == 20


def test_threads_fault_and_unmap_at_once(inside: Inside, programs: dict[str, Path]) -> None:
    assert inside.agrees([str(programs["threads"])]).status == 0


def test_children_share_memory_until_they_exec(inside: Inside, programs: dict[str, Path]) -> None:
    assert "no program: No such file" in inside.agrees([str(programs["spawns"])]).output


def test_a_file_is_the_same_mapped_and_by_calls(inside: Inside, programs: dict[str, Path], tmp_path: Path) -> None:
    assert "longer: 0 0" in inside.agrees([str(programs["shared_file"])], directory=tmp_path).output


def test_huge_pages(inside: Inside, programs: dict[str, Path]) -> None:
    assert inside.agrees([str(programs["huge"])]).status == 0


def test_programs_that_are_refused(inside: Inside, programs: dict[str, Path]) -> None:
    """Whether a program is open for writing only a host from v6.14 on tells (docs/programs.md)."""
    major, minor = map(int, os.uname().release.split(".")[:2])
    output = inside.agrees([str(programs["refused"]), *(["busy"] if (major, minor) >= (6, 14) else [])]).output
    assert "a link: Too many levels of symbolic links" in output


NO_PROGRAMS = """import os, socket, sys
os.chdir(sys.argv[1])
os.mkfifo("fifo")
os.mkdir("directory")
socket.socket(socket.AF_UNIX).bind("socket")
for name in ("fifo", "socket", "directory", "/dev/null", "none"):
    try:
        os.execv(name, [name])
    except OSError as error:
        print(name, error.errno)
"""


def test_what_is_no_file_is_not_executed(inside: Inside, tmp_path: Path) -> None:
    """The open of a FIFO would wait for a writer."""
    ends = []
    for name, run in (("inside", inside.run), ("outside", inside.outside)):
        (tmp_path / name).mkdir()
        ends.append(run([sys.executable, "-I", "-c", NO_PROGRAMS, str(tmp_path / name)]))
    assert ends[0] == ends[1]
    assert ends[0].output.startswith("fifo 13\nsocket 13\n")


def test_mounts_step_by_step_and_what_is_told_of_files(
    inside: Inside, programs: dict[str, Path], tmp_path: Path
) -> None:
    assert "a bad type: " in inside.agrees([str(programs["mounts"]), str(tmp_path)]).output


def test_a_script_by_its_descriptor(inside: Inside, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text('#!/bin/sh\necho "$0 $1"\ncat < "$0" | wc -l\n')
    script.chmod(0o755)
    words = "import os, sys; fd = os.open(sys.argv[1], 0); os.dup2(fd, 9); os.execve(9, ['x', 'y'], {})"
    assert inside.agrees([shutil.which("python3") or "", "-c", words, str(script)]).output == "/dev/fd/9 y\n3\n"
