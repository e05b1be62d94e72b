"""A host on another machine: a player reads, and the referee parses. Here both are on one machine."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kerneld.referee.errors import HostError
from kerneld.referee.facts import HostFacts
from kerneld.referee.generate import generate
from kerneld.referee.link import Link
from kerneld.referee.match import Match, open_match
from kerneld.referee.program import At, Op, from_json, to_json
from tests.differential.agreement import REGRESSIONS, agree
from tests.differential.alone import facts
from tests.differential.both_sides import referee

PLAYER = shlex.join([sys.executable, "-m", "kerneld", "referee", "--player"])


@pytest.fixture(scope="module")
def afar() -> Iterator[Match]:
    with referee(host_command=PLAYER) as both:
        yield both


def test_facts_come_through_json() -> None:
    found = facts()
    assert HostFacts.from_values(json.loads(json.dumps(found.to_values()))) == found


def test_its_programs_are_compared_like_this_machines(afar: Match, match: Match) -> None:
    # What is mapped by whoever starts the runner is not the runner's: both see the same places.
    assert afar.hosts.facts == match.hosts.facts
    assert afar.known == match.known
    for number in range(10):
        agree(afar, generate(f"player-{number}", 40))
    for file in REGRESSIONS[:10]:
        agree(afar, from_json(file.read_text()))


def test_a_difference_is_found(afar: Match, monkeypatch: pytest.MonkeyPatch) -> None:
    program = (Op(0, "mmap", (At(-1), 8192, 3, 0x22, 0), slot=0), Op(0, "store", (At(0), 8), data=b"\xf5"))
    monkeypatch.setattr(type(afar.ours), "store", type(afar.ours).load)
    monkeypatch.setattr(type(afar.ours), "load", lambda *_: None)
    with pytest.raises(TypeError):
        afar.play(program)
    monkeypatch.undo()
    assert afar.play(program) is None


def test_programs_that_were_expected_and_did_not_come(afar: Match) -> None:
    programs = [generate(f"expected-{number}", 20) for number in range(3)]
    for program in programs:
        afar.expect(program)
    assert afar.play(programs[2]) is None
    assert afar.play(programs[0]) is None


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("/nowhere/player", "cannot run"),
        ("", "cannot run"),
        ("true", "has gone"),
        ("echo hello, this is no player", "no message of a player"),
    ],
)
def test_a_command_that_is_no_player(command: str, says: str) -> None:
    with pytest.raises(HostError, match=says), open_match(host_command=command):
        pass


def test_why_a_machine_is_no_host_is_told_afar(tmp_path: Path) -> None:
    """Without a compiler there is no runner."""
    command = f"env CC=/nowhere/cc {PLAYER}"
    with pytest.raises(HostError, match="/nowhere/cc"), open_match(host_command=command):
        pass


@pytest.fixture
def player() -> Iterator[tuple[subprocess.Popen[bytes], Link]]:
    """A player that has told what it knows of its host, and the link to it."""
    with subprocess.Popen(shlex.split(PLAYER), stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        link = Link(process.stdout.fileno(), process.stdin.fileno())
        link.put({"mode": "plain", "counts": False})
        values, _ = link.get()
        if "error" in values:
            pytest.skip(values["error"])
        yield process, link


def test_a_player_ends_when_its_referee_does(player: tuple[subprocess.Popen[bytes], Link]) -> None:
    process, link = player
    link.put({"pages_out": True, "everything": True}, to_json(generate("left", 5)).encode())
    link.get()
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait() == 1


def test_what_ends_a_player_is_told_to_its_referee(player: tuple[subprocess.Popen[bytes], Link]) -> None:
    process, link = player
    link.put({"pages_out": True, "everything": True}, to_json((Op(0, "no_such_call"),)).encode())
    values, _ = link.get()
    assert values == {"error": "the player has failed: KeyError('NO_SUCH_CALL')"}
    assert process.wait()


def test_a_message_takes_any_pipe() -> None:
    receive, send = os.pipe()
    with open(receive, "rb"), open(send, "wb"):
        Link(receive, send).put({"a": 1}, b"bytes")
        assert Link(receive, send).get() == ({"a": 1}, b"bytes")
