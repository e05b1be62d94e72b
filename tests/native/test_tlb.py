"""What the host maps of a program inside is never more than its page table grants; whoever is killed leaves nothing."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.client import Process
from tests.native.conftest import NativeDaemon
from tests.native.host_maps import exceeding_pages, mapped_pages
from tests.native.inside import Inside
from tests.native.processes import agent_of, free_kb, start_waiting, wait_for_end
from tests.support.client import Nursery
from tests.support.patience import SECONDS
from tests.support.watched_daemon import Daemon

PAGE = 4096
WHILE = 0.5
"""How long a program is watched that is not to go on, in seconds."""


def test_the_host_maps_no_more_than_the_page_table_grants(
    inside: Inside, programs: dict[str, Path], inspector: Process
) -> None:
    process, vaddr = start_waiting(inside, programs["waits"])
    mapped = {page.vaddr: page.rights for page in mapped_pages(process.pid)}
    assert exceeding_pages(process.pid, inspector) == []
    # mprotect, munmap and fork have taken away what was there.
    assert "w" not in mapped.get(vaddr, "")
    assert vaddr + PAGE not in mapped
    assert mapped[vaddr + 2 * PAGE].startswith("r")
    process.communicate("")
    assert process.returncode == 0


@pytest.mark.parametrize("victim", ["program", "agent"])
def test_whoever_is_killed_leaves_nothing(
    inside: Inside, programs: dict[str, Path], inspector: Process, victim: str
) -> None:
    inside.run([str(programs["waits"])])  # Whose file stays in the page cache.
    before = free_kb(inspector)
    process, _ = start_waiting(inside, programs["waits"])
    agent = agent_of(process.pid)
    os.kill(process.pid if victim == "program" else agent, signal.SIGKILL)
    assert process.wait(SECONDS) == -signal.SIGKILL
    wait_for_end(agent)
    assert free_kb(inspector) == before


def test_a_program_that_is_killed_while_its_agent_is_stopped_leaves_nothing(
    inside: Inside, programs: dict[str, Path], inspector: Process
) -> None:
    """Nobody waits for an agent whose program cannot run any more."""
    inside.run([str(programs["waits"])])
    before = free_kb(inspector)
    process, _ = start_waiting(inside, programs["waits"])
    agent = agent_of(process.pid)
    os.kill(agent, signal.SIGSTOP)
    process.kill()
    process.wait(SECONDS)
    assert free_kb(inspector) == before
    os.kill(agent, signal.SIGKILL)
    wait_for_end(agent)


class SmallDaemon(Daemon):
    """A kerneld whose RAM a program soon has used up."""

    options = ("--ram", "12M", "--swap", "32M")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[SmallDaemon]:
    """A small machine of this test's own."""
    nursery = Nursery()
    daemon = SmallDaemon(tmp_path, nursery, check_invariants=False)
    yield daemon
    daemon.close()
    nursery.close()


def test_memory_that_is_swapped_out_comes_back(small: SmallDaemon, programs: dict[str, Path]) -> None:
    assert Inside(small.environment).agrees([str(programs["eats"]), "14"]).status == 0
    inspector = Process.attach(str(small.path))
    assert int(inspector.read_proc("vmstat").decode().split("pswpin ")[1].split()[0]) > 0
    inspector.close()


def test_a_stopped_program_holds_nobody_up(small: SmallDaemon, programs: dict[str, Path]) -> None:
    """Its pages are reclaimed while it is stopped, by the agent, and are there again when it goes on."""
    inside = Inside(small.environment)
    process, _ = start_waiting(inside, programs["waits"])
    process.send_signal(signal.SIGSTOP)
    assert os.waitid(os.P_PID, process.pid, os.WSTOPPED) is not None
    inspector = Process.attach(str(small.path))
    before = len(mapped_pages(process.pid))
    assert inside.run([str(programs["eats"]), "14"]).output == "all as written\n"
    assert len(mapped_pages(process.pid)) < before
    assert exceeding_pages(process.pid, inspector) == []
    inspector.close()
    process.send_signal(signal.SIGCONT)
    process.communicate("")
    inside.close()
    assert process.returncode == 0


def test_a_program_whose_agent_is_stopped_waits_and_nobody_else(small: SmallDaemon, programs: dict[str, Path]) -> None:
    """Its pages are taken away meanwhile, and it cannot be told. It goes on when its agent does."""
    inside = Inside(small.environment)
    process, _ = start_waiting(inside, programs["steps"], "a")
    assert process.stdin is not None
    assert process.stdout is not None
    agent = agent_of(process.pid)
    os.kill(agent, signal.SIGSTOP)
    assert inside.run([str(programs["eats"]), "14"]).output == "all as written\n"
    witness = Process.attach(str(small.path))
    assert "VmSwap:\t       0 kB" not in witness.read_proc(f"{process.pid}/status").decode()
    process.stdin.write("b")
    process.stdin.flush()
    before = cpu_seconds(small.process.pid)
    assert select.select([process.stdout], [], [], WHILE)[0] == []
    assert cpu_seconds(small.process.pid) - before < WHILE / 2
    assert witness.getpid() == os.getpid()
    os.kill(agent, signal.SIGCONT)
    assert process.communicate("cd")[0].count("0x") == 3
    assert process.returncode == 0
    witness.close()
    inside.close()


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_program_without_its_kernel_ends(tmp_path: Path, programs: dict[str, Path]) -> None:
    nursery = Nursery()
    daemon = NativeDaemon(tmp_path, nursery, check_invariants=False)
    inside = Inside(daemon.environment)
    process, _ = start_waiting(inside, programs["waits"])
    daemon.end(signal.SIGKILL)
    assert process.wait(SECONDS) == -signal.SIGKILL
    inside.close()
    nursery.close()


@pytest.mark.parametrize("name", ["memory", "spawns", "table"])
def test_invariants_hold_after_every_request(tmp_path: Path, programs: dict[str, Path], name: str) -> None:
    nursery = Nursery()
    daemon = Daemon(tmp_path, nursery)
    assert Inside(daemon.environment).run([str(programs[name])], directory=tmp_path).status == 0
    daemon.close()
    nursery.close()
