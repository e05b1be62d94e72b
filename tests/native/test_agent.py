"""The agent of a program waits for a thread that maps pages, but not for one that is killed or stopped meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from shared.client import Process
from shared.uapi.mman import Madv
from shared.uapi.page import PAGE_SIZE
from tests.native.breakpoint import Breakpoint
from tests.native.conftest import NativeDaemon
from tests.native.host_maps import exceeding_pages, mapped_pages
from tests.native.inside import Inside, compile_c
from tests.native.processes import address_of, agent_of, start_waiting, wait_for_end
from tests.support.client import Nursery
from tests.support.watched_daemon import Daemon

STUB = Path(__file__).resolve().parents[2] / "kerneld" / "commands" / "exec" / "stub"
WHERE = """
#include <stdio.h>
#include "native.h"
int main(void)
{
	printf("%lu\\n", AREAS_START + PAGE_BYTES + __builtin_offsetof(struct thread, mapping));
}
"""


def mapping_word(directory: Path) -> int:
    """Return the address of the word by which the program's first thread says that it is mapping pages."""
    source = directory / "where.c"
    source.write_text(WHERE)
    program = compile_c(source, directory / "where", f"-I{STUB}")
    return int(subprocess.run([program], capture_output=True, check=True).stdout)


def test_an_agent_does_not_wait_for_a_thread_that_was_killed_while_it_mapped(
    inside: Inside, programs: dict[str, Path], tmp_path: Path
) -> None:
    word = mapping_word(tmp_path)
    process, _ = start_waiting(inside, programs["waits"])
    agent = agent_of(process.pid)
    with Path(f"/proc/{process.pid}/mem").open("r+b", buffering=0) as memory:
        memory.seek(word)
        assert memory.read(8) == bytes(8)
        memory.seek(word)
        memory.write((1).to_bytes(8, "little"))
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    wait_for_end(agent)


def stopped_as_it_maps(inside: Inside, program: Path) -> tuple[subprocess.Popen[str], int, int]:
    """Return a program that is stopped in front of the call that maps a page, the page, and another written page.

    Until then the program has the zero page there.
    """
    process, vaddr = start_waiting(inside, program, "a")
    assert process.stdin is not None
    try:
        mapping = Breakpoint(process.pid, address_of("tlb_syscall"))
    except PermissionError:
        pytest.skip("this process may not trace its own children")
    process.stdin.write("b")
    process.stdin.flush()
    page = mapping.stop_there()
    assert page == vaddr + PAGE_SIZE
    return process, page, vaddr


def goes_on(process: subprocess.Popen[str], page: int) -> None:
    """Let a program that was stopped write to the page, and to more."""
    assert process.poll() is None
    process.send_signal(signal.SIGCONT)
    assert process.stdout is not None
    assert int(process.stdout.readline(), 16) == page


def test_a_thread_that_is_stopped_as_it_maps_a_page_holds_nobody_up(
    inside: Inside, native_daemon: NativeDaemon, programs: dict[str, Path]
) -> None:
    """The page goes while the thread stands in front of the call; then the thread may not map it."""
    process, page, _ = stopped_as_it_maps(inside, programs["steps"])
    inspector = Process.attach(str(native_daemon.path))
    assert inspector.process_madvise(process.pid, [(page, PAGE_SIZE)], Madv.PAGEOUT) == PAGE_SIZE
    assert "VmSwap:\t       4 kB" in inspector.read_proc(f"{process.pid}/status").decode()
    goes_on(process, page)
    assert page in [mapped.vaddr for mapped in mapped_pages(process.pid)]
    assert exceeding_pages(process.pid, inspector) == []
    inspector.close()
    process.communicate("cd")
    assert process.returncode == 0


def test_an_agent_does_not_look_at_a_thread_that_has_no_memory_yet(
    inside: Inside, native_daemon: NativeDaemon, programs: dict[str, Path]
) -> None:
    """A page goes while a thread is being made: its area has a number, and is not mapped."""
    process, page = start_waiting(inside, programs["later"])
    try:
        mapping = Breakpoint(process.pid, address_of("map_area"))
    except PermissionError:
        pytest.skip("this process may not trace its own children")
    assert process.stdin is not None
    process.stdin.write("b")
    process.stdin.flush()
    mapping.stop_there()
    inspector = Process.attach(str(native_daemon.path))
    assert inspector.process_madvise(process.pid, [(page, PAGE_SIZE)], Madv.PAGEOUT) == PAGE_SIZE
    inspector.close()
    process.send_signal(signal.SIGCONT)
    process.communicate()
    assert process.returncode == 0


class SwappingDaemon(Daemon):
    """A kerneld that checks its invariants, with each request also what the host maps."""

    options = ("--swap", "16M")


def test_what_a_late_mapping_was_to_replace_is_dropped(tmp_path: Path, programs: dict[str, Path]) -> None:
    """Another page goes while the thread stands in front of the call. So its answer is late, and maps nothing.

    The zero page must go nevertheless: it is not the program's page any more.
    """
    nursery = Nursery()
    daemon = SwappingDaemon(tmp_path, nursery)
    inside = Inside(daemon.environment)
    process, page, other = stopped_as_it_maps(inside, programs["steps"])
    inspector = Process.attach(str(daemon.path))
    assert inspector.process_madvise(process.pid, [(other, PAGE_SIZE)], Madv.PAGEOUT) == PAGE_SIZE
    inspector.close()
    goes_on(process, page)
    process.communicate("cd")
    assert process.returncode == 0
    inside.close()
    daemon.close()
    nursery.close()
