"""`kerneld run --explain`: why a call fails, and which calls kerneld never sees."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import subprocess
from pathlib import Path

import pytest

from kerneld.commands.run import explain
from tests.c.steps import run_command, run_environment
from tests.support.compiler import ROOT, build
from tests.support.patience import SECONDS

SOURCE = ROOT / "tests" / "c" / "bypass.c"
PAGE = 4096


def can_watch() -> bool:
    """Whether this host lets a process be told of calls: tried in a child, which keeps the filter."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            packed = b"".join(explain._INSTRUCTION.pack(*one) for one in explain.filter_instructions())
            code = ctypes.create_string_buffer(packed, len(packed))
            program = explain._PROGRAM.pack(len(packed) // 8, ctypes.addressof(code))
            explain._Libc().install_filter(program)
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


needs_watch = pytest.mark.skipif(not can_watch(), reason="this host has no seccomp filter that tells of calls")


@pytest.fixture(scope="module")
def bypass(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The program, linked dynamically and statically."""
    directory = tmp_path_factory.mktemp("bypass")
    return {
        "dynamic": build(directory / "dynamic", [SOURCE]),
        "static": build(directory / "static", [SOURCE], "-static"),
    }


def run(path: Path, cache: Path, *words: object, abi: str = "f24") -> tuple[int, str]:
    """Return the status of a `kerneld run --explain` and its stderr, up to the end of all that hold it."""
    command = run_command(abi, str(words[0]), *words[1:])
    command.insert(command.index("--"), "--explain")
    environ = run_environment(path, cache)
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=SECONDS, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("SELF", "1001", "2000"), "EINVAL: start 0x1001 is not page-aligned"),
        (("SELF", "2000", "1000"), "EINVAL: the range is empty: its end 0x1000 is not after its start 0x2000"),
        (("0", "1000", "2000"), "EINVAL: there is no process 0"),
        (("2", "1000", "2000"), "EINVAL: "),
    ],
)
def test_a_call_that_fails_says_why(
    inspectors: dict[str, Path], daemon_socket: Path, cache: Path, words: tuple[str, ...], why: str
) -> None:
    args = [str(os.getpid()) if word == "SELF" else word for word in words]
    status, said = run(daemon_socket, cache, inspectors["f24"], *args)
    first, second = said.splitlines()
    assert status == 1
    assert first.startswith(f"kerneld: shadowpt_open: {why}")
    assert second == f"inspector: shadowpt_open: {os.strerror(errno.EINVAL)}"


def test_fall_2023_names_its_own_calls(inspectors: dict[str, Path], daemon_socket: Path, cache: Path) -> None:
    _status, said = run(daemon_socket, cache, inspectors["f23"], os.getpid(), "2000", "1000", abi="f23")
    assert said.startswith("kerneld: shadowpt_enable: EINVAL: the range is empty")


def test_without_explain_nothing_is_added(inspectors: dict[str, Path], daemon_socket: Path, cache: Path) -> None:
    done = subprocess.run(
        run_command("f24", inspectors["f24"], os.getpid(), "1001", "2000"),
        env=run_environment(daemon_socket, cache),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.stderr == f"inspector: shadowpt_open: {os.strerror(errno.EINVAL)}\n"


@needs_watch
@pytest.mark.parametrize(("abi", "number", "call"), [("f24", 467, "shadowpt_open of --abi f25"),
                                                     ("f24", 452, "shadowpt_disable of --abi f23"),
                                                     ("f25", 466, "shadowpt_page_contents of --abi f24"),
                                                     ("f23", 470, "shadowpt_stop of --abi f25")])  # fmt: skip
def test_a_number_of_another_semester(
    bypass: dict[str, Path], daemon_socket: Path, cache: Path, abi: str, number: int, call: str
) -> None:
    status, said = run(daemon_socket, cache, bypass["dynamic"], "libc", number, abi=abi)
    assert (status, said.count("\n")) == (0, 1)
    assert said.startswith(f"kerneld: syscall({number}, ...) is {call}, and this is --abi {abi} (")


@needs_watch
@pytest.mark.parametrize(
    ("words", "how"),
    [
        (("dynamic", "raw", "462"), "by a syscall instruction of its own, not by libc's syscall()"),
        (("dynamic", "exec", "static", "libc", "462"), "and the library that takes calls is not in it"),
        (("dynamic", "exec", "static", "raw", "462"), "and the library that takes calls is not in it"),
        (("dynamic", "clean", "dynamic", "raw", "462"), "and the library that takes calls is not in it"),
    ],
)
def test_a_call_that_kerneld_never_sees(
    bypass: dict[str, Path], daemon_socket: Path, cache: Path, words: tuple[str, ...], how: str
) -> None:
    """On a new kernel 462 is mseal, and EINVAL from there looks like the table's."""
    status, said = run(daemon_socket, cache, *(bypass.get(word, word) for word in words))
    assert status == 0
    call = rf"kerneld: process \d+ \(\w+\) calls 462, shadowpt_open, {re.escape(how)}"
    assert re.fullmatch(call + r".*: the real kernel answers \(there it is mseal\), not kerneld\n", said), said


@needs_watch
def test_what_is_no_mistake_is_not_told(bypass: dict[str, Path], daemon_socket: Path, cache: Path) -> None:
    """Other numbers, and a call of another semester's that the program makes itself: Linux has one there by now."""
    assert run(daemon_socket, cache, bypass["dynamic"], "raw", 467) == (0, "")
    assert run(daemon_socket, cache, bypass["dynamic"], "libc", 471) == (0, "")
    assert run(daemon_socket, cache, "sh", "-c", "exit 42") == (42, "")
