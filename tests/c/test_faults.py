"""`kerneld run --abi f25-part1`: a program of fall 2025's first part, against a process of kerneld's and a real one."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from kerneld.shadowpt.host_event import open_page_faults
from shared.client import Process, realmem
from tests.c.steps import Stepper, run_command, run_environment
from tests.support.compiler import ROOT, build, include_directory

ABI = "f25-part1"
AT = 0x7E00_0000_0000
PAGE = 4096
SIZE = 2 * PAGE


def can_hear_of_faults() -> bool:
    """Whether this host tells a process of page faults of its own user's."""
    try:
        os.close(open_page_faults(os.getpid()))
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("faults") / "faults"
    return build(output, [ROOT / "tests" / "c" / "faults.c"], f"-I{include_directory(ABI)}")


@pytest.fixture(scope="module")
def faulter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("faulter") / "faulter", [ROOT / "tests" / "c" / "faulter.c"])


def start(program: Path, path: Path, cache: Path, *args: object) -> Stepper:
    return Stepper(run_command(ABI, program, *args), run_environment(path, cache))


def by_index(*faults: int) -> list[str]:
    return [hex(vaddr) for vaddr in sorted(faults, key=lambda vaddr: vaddr % SIZE)]


def test_a_process_of_kernelds(program: Path, daemon_socket: Path, cache: Path) -> None:
    with Process.attach(str(daemon_socket)) as process:
        at = process.mmap(0, 4 * PAGE, 3, 0x22)
        with start(program, daemon_socket, cache, os.getpid(), SIZE) as inspector:
            assert inspector.line() == "open\n"
            assert inspector.step().split() == []
            process.mem.store_u8(at + 8, 1)
            process.mem.store_u8(at + PAGE + 160, 1)
            assert inspector.step().split() == by_index(at + 8, at + PAGE + 160)
            with pytest.raises(OSError, match="busy"):
                process.faults_open(os.getpid(), realmem.map_anonymous(PAGE), PAGE)
            assert inspector.end() == (0, "")


def test_from_python(daemon_socket: Path) -> None:
    with Process.attach(str(daemon_socket)) as process:
        at = process.mmap(0, 4 * PAGE, 3, 0x22)
        dest = realmem.map_anonymous(SIZE)
        process.faults_open(os.getpid(), dest, SIZE)
        process.mem.store_u8(at + 80, 1)
        words = memoryview(process.snapshot()).cast("Q")
        assert len(words) == SIZE // 8
        assert words[(at + 80) % SIZE // 8] == at + 80
        assert realmem.read_u64(dest + (at + 80) % SIZE) == at + 80
        process.shadowpt_close()
        assert realmem.read(dest, SIZE) == bytes(SIZE)
        realmem.unmap(dest, SIZE)


@pytest.mark.skipif(not can_hear_of_faults(), reason="this host tells nobody of page faults (perf_event_open)")
def test_a_real_process(program: Path, faulter: Path, daemon_socket: Path, cache: Path) -> None:
    with Stepper([faulter]) as target:
        assert target.line() == "ready\n"
        with start(program, daemon_socket, cache, target.process.pid, SIZE) as inspector:
            assert inspector.line() == "open\n"
            wanted: set[int] = set()
            for offset in (0x123, 0x1200, 0x2340):
                assert target.process.stdin is not None
                target.process.stdin.write(f"{offset:x}\n")
                target.process.stdin.flush()
                assert target.line() == "done\n"
                wanted.add(AT + offset)
                await_faults(inspector, wanted)
            assert target.process.stdin is not None
            target.process.stdin.write("d\n")
            target.process.stdin.flush()
            assert target.process.wait() == -11
            await_faults(inspector, wanted | {0x18})
            assert inspector.end() == (0, "")


def await_faults(inspector: Stepper, wanted: set[int]) -> None:
    """Look until the table has these faults of the test's: it is a look at each interval, not at once."""
    while True:
        seen = {int(word, 16) for word in inspector.step().split()}
        if wanted <= seen:
            return
        assert not {vaddr for vaddr in seen if AT <= vaddr < AT + 4 * PAGE} - wanted


@pytest.mark.parametrize("words", [(PAGE, 8), (PAGE + 8,), (0,)])
def test_what_is_not_of_whole_pages(program: Path, daemon_socket: Path, cache: Path, words: tuple[int, ...]) -> None:
    with start(program, daemon_socket, cache, os.getpid(), *words) as inspector:
        assert inspector.end() == (1, f"faults: shadowpt_open: {os.strerror(errno.EINVAL)}\n")
