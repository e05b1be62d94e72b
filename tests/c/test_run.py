"""`kerneld run`: programs of the assignment, compiled here, unmodified, against a real daemon."""

from __future__ import annotations

import os
import re
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from shared.client import Process, realmem
from tests.c.run_programs import run
from tests.c.steps import Inspector, Stepper, run_command, run_environment
from tests.support.compiler import ROOT, build, has_sanitizer, include_directory
from tests.support.daemons import environment, kerneld, private_socket, running_daemon
from tests.support.patience import SECONDS
from tests.support.watched_daemon import shm_names

PAGE = 4096
ANON = {"allocated", "anonymous"}
Programs = dict[str, Path]


def count_fds(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


@pytest.mark.parametrize("sanitize", [False, True])
def test_a_program_of_the_assignment(
    tmp_path: Path, unchecked_daemon: tuple[Path, int], cache: Path, *, sanitize: bool
) -> None:
    """Every promise that run_check.c lists, many opens and closes among them; the daemon keeps nothing of it."""
    if sanitize and not has_sanitizer(tmp_path):
        pytest.skip("no AddressSanitizer here")
    flags = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined") if sanitize else ("-std=gnu11",)
    source = ROOT / "tests" / "c" / "run_check.c"
    program = build(tmp_path / "run_check", [source], f"-I{include_directory('f24')}", "-pthread", *flags)
    path, pid = unchecked_daemon
    counts = []
    for _round in range(2):
        # The first look at a real process starts the process that looks, and the daemon keeps its end of that.
        assert run(path, cache, program) == (0, "")
        assert re.search("^ShadowTable: +closed$", kerneld(path, "status").stdout, re.MULTILINE)
        counts.append(count_fds(pid))
    assert counts[0] == counts[1]
    assert shm_names(pid) == []


TOUR: list[tuple[int, int, set[str], set[str]]] = [
    # Pages from, to; flags of fall 2024; what fall 2023 says besides.
    (0, 8, ANON, {"vaddr_writeable"}),  # mmap
    (0, 1, ANON | {"mapped"}, {"vaddr_writeable", "pte_writeable"}),  # the first write
    (1, 2, ANON | {"mapped"}, {"vaddr_writeable"}),  # the first read: the zero page
    (4, 6, set(), set()),  # munmap
    (0, 1, ANON | {"mapped"}, set()),  # mprotect to read-only
    (0, 1, ANON | {"mapped"}, {"vaddr_writeable", "pte_writeable"}),  # and back
    (0, 1, ANON | {"mapped"}, {"vaddr_writeable"}),  # fork, the child writes its copy
    (0, 1, ANON | {"mapped"}, {"vaddr_writeable", "pte_writeable"}),  # a write of the sole owner
    (12, 13, {"allocated"}, {"vaddr_writeable"}),  # a file
    (12, 13, {"allocated", "mapped"}, {"vaddr_writeable"}),  # read
]


@pytest.mark.parametrize("abi", ["f24", "f25", "f23"])
def test_every_step_of_the_tour(
    abi: str, inspectors: Programs, target_program: Path, daemon_socket: Path, cache: Path
) -> None:
    with Stepper([target_program], environment(daemon_socket)) as target:
        start, end = target.line().split()[3:]
        target.line()
        pid = target.process.pid
        with Inspector(abi, inspectors[abi], daemon_socket, cache, pid, start, end) as inspector:
            assert inspector.line() == f"open {start} {end}\n"
            expected: list[set[str]] = [set() for _ in range(16)]
            assert [words for _, words in inspector.read()] == expected
            for first, last, words, also in TOUR:
                target.step()
                value = words | also if abi == "f23" else words
                expected[first:last] = [value] * (last - first)
                rows = inspector.look()
                assert [words for _, words in rows] == expected
                assert all((pfn != 0) == ("mapped" in words) for pfn, words in rows)
            target.push()
            assert target.process.wait(SECONDS) == 0
            assert inspector.look() == [(0, set())] * 16
            assert inspector.end() == (0, "")


def test_fall_2023_shifts_bounds_down_and_reduces_a_long_range(
    inspectors: Programs, target_program: Path, daemon_socket: Path, cache: Path
) -> None:
    with Stepper([target_program], environment(daemon_socket)) as target:
        start = int(target.line().split()[3], 16)
        target.line()
        for first, last, bounds in (
            (start + 5, start + 3 * PAGE - 1, (start, start + 2 * PAGE)),
            (start + 5, start + 0x2000000, (start, start + 0x800000)),
            (0x7000_0000_0000, 0x8000_0000_0000, (0x7000_0000_0000, 0x7000_0080_0000)),
        ):
            with Inspector(
                "f23", inspectors["f23"], daemon_socket, cache, target.process.pid, hex(first), hex(last)
            ) as inspector:
                assert inspector.line() == f"open {bounds[0]:#x} {bounds[1]:#x}\n"
                inspector.read()
                assert inspector.end() == (0, "")


@pytest.mark.parametrize("signo", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_inspector_that_ends_by_a_signal_leaves_the_table_to_the_next(
    signo: int, inspectors: Programs, target_program: Path, daemon_socket: Path, cache: Path
) -> None:
    """SIGINT's handler closes the table itself, as students do; after the others the kernel does."""
    with Stepper([target_program], environment(daemon_socket)) as target:
        start, end = target.line().split()[3:]
        target.line()
        command = run_command("f24", inspectors["f24"], target.process.pid, start, end)
        with Stepper(command, run_environment(daemon_socket, cache)) as inspector:
            while inspector.line() != "---\n":
                pass
            second = run(daemon_socket, cache, inspectors["f24"], target.process.pid, start, end)
            assert second == (1, "inspector: shadowpt_open: Device or resource busy\n")
            inspector.process.send_signal(signo)
            assert inspector.process.wait(SECONDS) == (0 if signo == signal.SIGINT else -signo)
        with Inspector("f24", inspectors["f24"], daemon_socket, cache, target.process.pid, start, end) as inspector:
            assert inspector.line() == f"open {start} {end}\n"
            inspector.read()
            assert inspector.end() == (0, "")


def test_a_python_target(inspectors: Programs, daemon_socket: Path, cache: Path) -> None:
    with Process.attach(str(daemon_socket)) as process:
        address = process.mmap(0, 2 * PAGE, 3, 0x22)
        arguments = (os.getpid(), hex(address), hex(address + 2 * PAGE))
        with Inspector("f24", inspectors["f24"], daemon_socket, cache, *arguments) as inspector:
            inspector.line()
            assert [words for _, words in inspector.read()] == [ANON, ANON]
            process.mem.store_u8(address, 1)
            assert [words for _, words in inspector.look()] == [ANON | {"mapped"}, ANON]
            assert inspector.end() == (0, "")


def test_without_a_daemon(tmp_path: Path, cache: Path, inspectors: Programs) -> None:
    path = tmp_path / "none.sock"
    line = f"no kerneld at {path}: start one with 'kerneld start'\n"
    assert run(path, cache, inspectors["f24"], 1, 0, hex(PAGE)) == (3, f"kerneld: {line}")
    # One that was there when the program started, and is not at its first call.
    library = next((cache / "kerneld").glob("preload-f24-*.so"), None)
    if library is not None:
        done = subprocess.run(
            [inspectors["f24"], "1", "0", "0x1000"],
            env={**environment(path), "LD_PRELOAD": str(library)},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 1
        assert done.stderr == f"kerneld: {line}inspector: shadowpt_open: Function not implemented\n"


def test_a_daemon_that_dies(tmp_path: Path, cache: Path, inspectors: Programs, target_program: Path) -> None:
    path = private_socket(tmp_path)
    with running_daemon(path) as daemon, Stepper([target_program], environment(path)) as target:
        start, end = target.line().split()[3:]
        with Inspector("f24", inspectors["f24"], path, cache, target.process.pid, start, end) as inspector:
            inspector.line()
            inspector.read()
            daemon.send_signal(signal.SIGKILL)
            daemon.wait(SECONDS)
            status, errors = inspector.end()
            assert status == 1
            assert errors == (
                f"kerneld: the kerneld at {path} went away, and the table with it\n"
                "inspector: shadowpt_close: Input/output error\n"
            )


def test_programs_that_cannot_be_run(tmp_path: Path, cache: Path, daemon_socket: Path, inspectors: Programs) -> None:
    static = build(tmp_path / "static", [ROOT / "examples/c/inspector.c"], f"-I{include_directory('f24')}", "-static")
    foreign = tmp_path / "foreign"
    shutil.copy(inspectors["f24"], foreign)
    with foreign.open("r+b") as file:
        file.seek(18)
        file.write(struct.pack("<H", 183))
    text = tmp_path / "text"
    text.write_text("hello\n")
    text.chmod(0o755)
    script = tmp_path / "script"
    script.write_text(f"#!{static}\n")
    script.chmod(0o755)
    for program, why in {
        static: f"{static} is linked statically: its system calls cannot be taken (link it without -static)",
        foreign: f"{foreign} is a program for another architecture (64-bit ARM): only x86-64 programs run here",
        text: f"{text} is neither an ELF program nor a script with #!",
        script: f"{static} is linked statically: its system calls cannot be taken (link it without -static)",
        tmp_path / "none": f"there is no program {tmp_path / 'none'}",
        tmp_path: f"{tmp_path} is not a program that may be executed",
    }.items():
        assert run(daemon_socket, cache, program) == (8, f"kerneld: {why}\n")


def test_without_a_compiler_is_one_line(tmp_path: Path, daemon_socket: Path) -> None:
    empty = {**run_environment(daemon_socket, tmp_path), "CC": "no-such-compiler"}
    done = subprocess.run(
        run_command("f24", "true"), env=empty, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 8
    assert done.stderr.count("\n") == 1
    assert "there is no no-such-compiler" in done.stderr
    assert not list((tmp_path / "kerneld").iterdir())


def test_the_library_is_built_once(tmp_path: Path, daemon_socket: Path) -> None:
    assert run(daemon_socket, tmp_path, "true") == (0, "")
    (library,) = (tmp_path / "kerneld").iterdir()
    built = library.stat()
    assert run(daemon_socket, tmp_path, "true") == (0, "")
    assert [library] == list((tmp_path / "kerneld").iterdir())
    assert library.stat().st_mtime_ns == built.st_mtime_ns
    assert run(daemon_socket, tmp_path, "true", abi="f23") == (0, "")
    assert len(list((tmp_path / "kerneld").iterdir())) == 2


def test_the_program_takes_the_process_over(daemon_socket: Path, cache: Path) -> None:
    """Its status, its arguments and its signals are its own: SIGPIPE is not ignored, as Python has it."""
    assert run(daemon_socket, cache, "sh", "-c", "exit 42")[0] == 42
    assert run(daemon_socket, cache, "sh", "-c", "kill -PIPE $$")[0] == -signal.SIGPIPE
    assert run(daemon_socket, cache, "sh", "-c", 'echo "$1" >&2', "x", "--help") == (0, "--help\n")


@pytest.mark.parametrize("abi", ["f24", "f25", "f23", "f25-part1"])
def test_the_header_of_a_semester(tmp_path: Path, abi: str) -> None:
    command = [sys.executable, "-m", "kerneld", "run", "--abi", abi, "--header", str(tmp_path / "new" / "include")]
    subprocess.run(command, check=True, capture_output=True, timeout=SECONDS)
    installed = tmp_path / "new" / "include" / "linux" / "shadowpt.h"
    assert installed.read_bytes() == (include_directory(abi) / "linux" / "shadowpt.h").read_bytes()


def test_the_header_comes_with_libkerneld(tmp_path: Path) -> None:
    """A program of libkerneld's is compiled with what --header gives, and nothing else."""
    include = tmp_path / "include"
    command = [sys.executable, "-m", "kerneld", "run", "--header", str(include)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=SECONDS)
    assert f"{include / 'kerneld.h'}: " in done.stderr
    build(tmp_path / "target", [ROOT / "examples" / "c" / "target.c", include / "kerneld.c"], f"-I{include}")


def test_layouts_on_the_wire(daemon_socket: Path) -> None:
    """Fall 2023's layout is args[2] = 23, and there is no third."""
    with Process.attach(str(daemon_socket)) as process:
        entries = realmem.map_anonymous(PAGE)
        for layout in (1, 22, 24, 1 << 32 | 23):
            with pytest.raises(OSError, match="Invalid argument"):
                process.shadowpt_open(os.getpid(), PAGE, 2 * PAGE, entries, layout=layout)  # type: ignore[arg-type]
        realmem.unmap(entries, PAGE)
