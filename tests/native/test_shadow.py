"""A program inside opens the table of another inside, by the calls of each semester."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.native.inside import Inside
from tests.support.compiler import ROOT, build, include_directory

AT, PAGE = 0x7E00_0000_0000, 4096

EXPECTED = """\
open 0
again -1
start 0
before 3 3 3
after 3 7 0
contents 0: t
no frame -1
gone 0
stop 0
close 0
empty 0
closed -1
"""


def test_the_assignments_calls_work_inside(inside: Inside, programs: dict[str, Path]) -> None:
    assert inside.run([str(programs["table"])]).output == EXPECTED


def ask(process: subprocess.Popen[str], line: str, last: str) -> list[str]:
    """Send a line, and return what is said up to the line that is the last."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(line)
    process.stdin.flush()
    said: list[str] = []
    for answer in process.stdout:
        if answer == last:
            return said
        said.append(answer.rstrip())
    raise AssertionError(said)


@pytest.fixture(scope="module")
def faulter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target that writes to one of its four pages at each line."""
    return build(tmp_path_factory.mktemp("faulter") / "faulter", [ROOT / "tests" / "c" / "faulter.c"])


@pytest.mark.parametrize("abi", ["f24", "f25", "f23"])
def test_the_programs_of_a_semester_run_inside_together(
    inside: Inside, faulter: Path, tmp_path: Path, abi: str
) -> None:
    program = build(tmp_path / "it", [ROOT / "examples" / "c" / "inspector.c"], f"-I{include_directory(abi)}")
    target = inside.start([str(faulter)])
    assert ask(target, "", "ready\n") == []
    bounds = [hex(AT), hex(AT + 4 * PAGE)]
    inspector = inside.start([str(program), str(target.pid), *bounds, "lines"], "--abi", abi)
    also = " vaddr_writeable" if abi == "f23" else ""
    assert ask(inspector, "", "---\n") == [
        f"open {bounds[0]} {bounds[1]}",
        *(f"{AT + number * PAGE:#x} pfn 0 allocated anonymous{also}" for number in range(4)),
    ]
    ask(target, "1008\n", "done\n")
    before, written, *_ = ask(inspector, "\n", "---\n")
    assert before == f"{AT:#x} pfn 0 allocated anonymous{also}"
    words = "allocated anonymous mapped" + (" vaddr_writeable pte_writeable" if abi == "f23" else "")
    assert written.startswith(f"{AT + PAGE:#x} pfn 0x")
    assert written.endswith(words)
    inspector.communicate("")
    target.communicate("")
    assert (inspector.returncode, target.returncode) == (0, 0)


def test_the_faults_of_fall_2025s_first_part(inside: Inside, faulter: Path, tmp_path: Path) -> None:
    source = ROOT / "tests" / "c" / "faults.c"
    program = build(tmp_path / "faults", [source], f"-I{include_directory('f25-part1')}")
    target = inside.start([str(faulter)])
    assert ask(target, "", "ready\n") == []
    inspector = inside.start([str(program), str(target.pid), str(2 * PAGE)], "--abi", "f25-part1")
    assert ask(inspector, "", "open\n") == []
    ask(target, "1230\n", "done\n")
    ask(target, "2340\n", "done\n")
    assert inspector.stdin is not None
    assert inspector.stdout is not None
    inspector.stdin.write("\n")
    inspector.stdin.flush()
    assert {hex(AT + 0x1230), hex(AT + 0x2340)} <= set(inspector.stdout.readline().split())
    inspector.communicate("")
    target.communicate("")
    assert (inspector.returncode, target.returncode) == (0, 0)


def test_a_child_has_the_semester_too(inside: Inside) -> None:
    """shadowpt_close of f25 without a table is EINVAL; the number of f24 is no call."""
    words = ["sh", "-c", "perl -e 'for (468, 463) { syscall($_); print $!+0, qq{\\n} }'"]
    process = inside.start(words, "--abi", "f25")
    output, errors = process.communicate("")
    assert (output, errors) == ("22\n38\n", "")
