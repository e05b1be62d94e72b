"""An agent that is silent: one that waits for a processor has time, one that sleeps or does other things has not."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kerneld.server import agent_link, starving
from kerneld.server.agent_link import AgentLink
from kerneld.server.connection import Connection
from kerneld.server.starving import Look, look_at
from kerneld.syscalls.kernel import Sender
from kerneld.tlb.record import RECORD
from shared.uapi.page import Pid

RECORD_7 = RECORD.pack(RECORD.size, 0, 7)
ANSWER_7 = (7).to_bytes(8, "little")


@dataclass
class Scene:
    """A kernel's end, an agent's end, and what was killed."""

    link: AgentLink
    agent: socket.socket
    killed: list[str] = field(default_factory=list)


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    monkeypatch.setattr(agent_link, "PATIENCE_SECONDS", 0.05)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    killed: list[str] = []
    link = AgentLink(Connection(ours, Sender(Pid(1), 0, 0)), lambda: killed.append("the process"))
    with ours, theirs:
        yield Scene(link, theirs, killed)


def looks(monkeypatch: pytest.MonkeyPatch, scene: Scene, seen: list[Look], answers_at: int = -1) -> list[Look]:
    """Have the kernel see this, one after the other; the agent answers at one of them. Return what is left to see."""
    left = list(seen)

    def look(_pid: int, _name: str) -> Look:
        if len(seen) - len(left) == answers_at:
            scene.agent.send(ANSWER_7)
        return left.pop(0)

    monkeypatch.setattr(starving, "look_at", look)
    return left


def test_an_agent_that_waits_for_a_processor_has_time(monkeypatch: pytest.MonkeyPatch, scene: Scene) -> None:
    left = looks(monkeypatch, scene, [Look(True, 0.01)] * 40, answers_at=30)
    scene.link.order(RECORD_7)
    assert (scene.killed, len(left)) == ([], 9)


def test_an_agent_that_sleeps_now_and_then_has_time(monkeypatch: pytest.MonkeyPatch, scene: Scene) -> None:
    seen = ([Look(False, 0.0)] * 3 + [Look(True, 0.0)]) * 3
    looks(monkeypatch, scene, seen, answers_at=11)
    scene.link.order(RECORD_7)
    assert scene.killed == []


def test_the_process_of_an_agent_that_only_sleeps_is_killed(monkeypatch: pytest.MonkeyPatch, scene: Scene) -> None:
    looks(monkeypatch, scene, [Look(False, 0.0)] * 5)
    scene.link.order(RECORD_7)
    assert scene.killed == ["the process"]


def test_the_process_of_an_agent_that_is_stopped_is_killed_at_once(
    monkeypatch: pytest.MonkeyPatch, scene: Scene
) -> None:
    looks(monkeypatch, scene, [Look(True, 0.0), Look(True, 0.0, is_stopped=True)])
    scene.link.order(RECORD_7)
    assert scene.killed == ["the process"]


@pytest.mark.parametrize("answers", [True, False])
def test_an_agent_that_the_host_holds_up_has_a_while(
    monkeypatch: pytest.MonkeyPatch, scene: Scene, answers: bool
) -> None:
    monkeypatch.setattr(agent_link, "PATIENCE_SECONDS", 0.2)  # Ten looks.
    held, idle = Look(False, 0.0, is_held=True), Look(False, 0.0)
    looks(monkeypatch, scene, [idle] * 4 + [held] * 10 + [idle], answers_at=13 if answers else -1)
    scene.link.order(RECORD_7)
    assert scene.killed == ([] if answers else ["the process"])


def test_a_process_that_uses_its_turns_for_other_things_is_killed(
    monkeypatch: pytest.MonkeyPatch, scene: Scene
) -> None:
    left = looks(monkeypatch, scene, [Look(True, at * 0.01) for at in range(40)])
    scene.link.order(RECORD_7)
    assert scene.killed == ["the process"]
    assert left


@pytest.mark.parametrize(("nr_running", "most"), [(15, 1), (16, 2), (1000, 4)])
def test_an_agent_among_many_threads_has_longer(
    monkeypatch: pytest.MonkeyPatch, scene: Scene, nr_running: int, most: int
) -> None:
    monkeypatch.setattr(agent_link, "PATIENCE_SECONDS", 0.25)
    left = looks(monkeypatch, scene, [Look(True, at * 0.0625, nr_running=nr_running) for at in range(40)])
    scene.link.order(RECORD_7)
    assert scene.killed == ["the process"]
    assert len(left) == 40 - (4 * most + 1)


def test_what_a_process_does_is_seen_with_its_children() -> None:
    spin = "import os\nif os.fork():\n os.wait()\nwhile True:\n pass\n"
    with subprocess.Popen([sys.executable, "-c", spin]) as process:
        try:
            # The parent waits after its start: it is the child that goes on.
            while look_at(process.pid, "child").cpu_seconds < 0.2:
                assert process.poll() is None
            assert look_at(process.pid, "child").wants_to_run
            (child,) = children_of(process.pid)
            name = Path(f"/proc/{child}/comm").read_text().rstrip()
            assert not look_at(process.pid, name).is_stopped
            os.kill(child, signal.SIGSTOP)
            while not look_at(process.pid, name).is_stopped:
                os.sched_yield()
            assert not look_at(process.pid, "another").is_stopped
        finally:
            for child in children_of(process.pid):
                os.kill(child, signal.SIGKILL)
            process.kill()
    assert look_at(process.pid, "child") == Look(False, 0.0)


def children_of(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(word) for word in file.read().split()]
