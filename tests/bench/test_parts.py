"""Where the instructions go: the parts of a round trip, the functions of a call, and the requests of a program."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import counted_daemon, parts
from bench.counted_daemon import COUNT, Counting
from bench.counted_programs import Kind, Requests
from bench.meters import Functions
from bench.one_house import BY_RING, BY_SOCKET, KINDS, House, measure_all
from bench.parts import Function, Handler, Missed
from bench.pidfds import PID_BYTES, serve
from bench.report import RESULTS
from kerneld.syscalls import dispatch
from kerneld.syscalls.table import RESTART
from shared.spin import Spin
from shared.uapi.syscalls import Nr


class Recorder:
    """A counter that notes what it is told."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.is_counting = False

    def begin(self) -> None:
        self.resume()

    def pause(self) -> None:
        assert self.is_counting
        self.is_counting = False

    def resume(self) -> None:
        assert not self.is_counting
        self.is_counting = True

    def end(self, name: str) -> None:
        self.pause()
        self.names.append(name)


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[House]:
    """A house, which changes two things of this process."""
    monkeypatch.setattr(Spin, "_ask", Spin._ask)
    processors = os.sched_getaffinity(0)
    made = House(str(tmp_path))
    yield made
    made.close()
    os.sched_setaffinity(0, processors)


def test_every_level_of_every_kind_is_counted(house: House) -> None:
    """Each request is answered: else the next one would find another answer, or none."""
    recorder = Recorder()
    measure_all(house, recorder, BY_SOCKET, 2)
    house.open_ring()
    measure_all(house, recorder, BY_RING, 2)
    levels = [level.__name__ for level in [*BY_SOCKET, *BY_RING]]
    assert sorted(recorder.names) == sorted(f"{kind}_{level}" for level in levels for kind in KINDS)
    used = {f"by_{level}" for pair in [*parts.SOCKET_PARTS.values(), *parts.RING_PARTS.values()] for level in pair}
    assert used | {"by_echo", "by_serve", "by_ring_serve"} == set(levels)


def test_the_parts_of_a_round_trip_add_up() -> None:
    levels = {f"getpid_by_{level}": 10 for level in ("nothing", "pause")} | {
        "getpid_by_echo": 30, "getpid_by_handler": 15, "getpid_by_dispatch": 35, "getpid_by_answer": 75,
        "getpid_by_receive": 17, "getpid_by_send": 13, "getpid_by_serve": 200, "getpid_by_turn": 300,
        "getpid_by_client": 90, "getpid_by_ring_serve": 150, "getpid_by_ring_turn": 260, "getpid_by_ring_client": 80,
    }  # fmt: skip
    trip = parts.round_trip(levels, "getpid")
    assert trip["echo"] == {"both ends": 20}
    assert trip["socket"] == {
        "client's library": 80, "loop and epoll": 100, "receive, with credentials": 7, "send": 3,
        "decode, encode": 40, "dispatch": 20, "handler": 5, "service": 115,
    }  # fmt: skip
    assert sum(trip["socket"].values()) == (300 - 10) + (90 - 10)
    assert sum(trip["ring"].values()) == (260 - 10) + (80 - 10)


def test_functions_are_the_same_each_time() -> None:
    first, second = (parts.functions_of(("read",), 5)["read"] for _ in range(2))
    assert first == second
    assert "kerneld/syscalls/dispatch.py:run" in {function.place for function in first}
    assert all(function.opcodes > 0 for function in first)


def test_the_first_run_of_a_function_is_counted_as_the_second(capsys: pytest.CaptureFixture[str]) -> None:
    def inner(number: int) -> int:
        return len(str(number))

    def outer() -> None:
        for number in range(3):
            inner(number)

    meter = Functions()
    for _ in range(2):
        meter.begin()
        outer()
        meter.end("piece")
    first, second = (json.loads(line.partition(" ")[2]) for line in capsys.readouterr().out.splitlines())
    assert first == second
    (of_inner,) = (counts for name, counts in first.items() if name.endswith("inner"))
    assert of_inner[0] > 3 * 4
    assert of_inner[1] >= 3


def test_the_functions_that_are_named_run_most() -> None:
    functions = [Function("a.py:f", 60, 1), Function("b.py:C.g", 30, 0), Function("c.py:h", 10, 5)]
    handler = parts.handler_of(5000, functions)
    assert handler == Handler(5000, 100, 6, functions[:2], 1)
    assert (
        list(parts.lines_of_handlers({"pair": handler}))[-1] == "| pair | 5,000 | 100 | 50 | 6 | f 60, g 30; 1 others |"
    )
    many = parts.handler_of(5000, [Function(f"a.py:f{number}", 1, 0) for number in range(20)])
    assert list(parts.lines_of_handlers({"pair": many}))[-1].endswith("f11 5; 4 more make 80; 4 others |")


def test_missed_marks_are_shown_with_what_they_allow() -> None:
    def row(number: int, mark: str, ratio: float, ours: float, theirs: float, yardstick: str) -> dict[str, Any]:
        return {
            "row": number, "measured": "a call", "yardstick": yardstick, "cpus": "one CPU", "unit": "ns", "mark": mark,
            "ratio": ratio, "ours": [ours], "theirs": [theirs],
        }  # fmt: skip

    rounds = [
        row(1, "≤ 1.25", 1.2, 12_000, 10_000, "echo of the same records"),
        row(17, "≤ 0.4", 2, 60_000, 30_000, "User-Mode Linux"),
        row(30, "≤ 3", 6, 60_000, 10_000, "outside"),
        row(10, "≥ 5", 4, 60_000, 10_000, "host"),
    ]
    first, second = parts.missed(rounds)
    assert first == Missed("17: a call, one CPU, beside User-Mode Linux", 60, 12, 20)
    assert second == Missed("30: a call, one CPU, beside outside", 60, 30, None)
    assert list(parts.lines_of_missed([second]))[-1].endswith("| 60.0 | 30.0 | – |")


def test_programs_are_shown_by_kinds() -> None:
    kinds = {"munmap": Kind(2, 3_000_000), "fault_read_file": Kind(10, 5_000_000), "connect": Kind(1, 20_000)}
    first, second = Requests("true", kinds, 9_000_000), Requests("gcc", {"munmap": Kind(1, 1_000_000)}, 2_000_000)
    assert list(parts.lines_of_programs([first, second])) == [
        "| requests | true | gcc |",
        "|---|---|---|",
        "| fault read file | 10 · 500 · 5.0 | – |",
        "| munmap | 2 · 1,500 · 3.0 | 1 · 1,000 · 1.0 |",
        "| all else | 1 · 20 · 0.0 | – |",
        "| all handlers | 13 · 617 · 8.0 | 1 · 1,000 · 1.0 |",
        "| the whole daemon | 9.0 | 2.0 |",
    ]


@pytest.mark.parametrize(("name", "names"), [("x", ["munmap", "munmap__further_piece"]), ("all+x", ["all"])])
def test_requests_are_counted_between_two(monkeypatch: pytest.MonkeyPatch, name: str, names: list[str]) -> None:
    class Call:
        nr = Nr.MUNMAP

    recorder, call = Recorder(), Call()
    monkeypatch.setattr(counted_daemon, "counter", lambda name: recorder)
    monkeypatch.setattr(dispatch, "run", lambda call, nr: nr)
    counting: Any = Counting(name)
    assert counting.run(call, Nr.BRK) == Nr.BRK
    assert counting.run(call, COUNT) == 0
    if name == "x":
        # The counter begins with the first piece.
        recorder.is_counting = False
    assert counting.run(call, Nr.MUNMAP) == Nr.MUNMAP
    assert counting.run(call, RESTART) == RESTART
    assert counting.run(call, COUNT) == 0
    assert counting.run(call, Nr.BRK) == Nr.BRK
    assert recorder.names == names


def test_another_process_opens_pidfds() -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near, far:
        server = threading.Thread(target=serve, args=(far,))
        server.start()
        near.send(os.getpid().to_bytes(PID_BYTES, "little"))
        _, (fd,), _, _ = socket.recv_fds(near, 1, 1)
        assert f"Pid:\t{os.getpid()}\n" in Path(f"/proc/self/fdinfo/{fd}").read_text()
        os.close(fd)
        near.send((1 << 30).to_bytes(PID_BYTES, "little"))
        assert socket.recv_fds(near, 1, 1)[:2] == (b"-", [])
        near.shutdown(socket.SHUT_RDWR)
        server.join()


def test_the_kept_parts_have_every_table(capsys: pytest.CaptureFixture[str]) -> None:
    kept = json.loads((RESULTS / "parts.json").read_text(encoding="utf-8"))
    assert kept["round_trips"].keys() == KINDS.keys()
    assert kept["handlers"].keys() == set(parts.CALLS)
    assert kept["missed"]
    parts.show()
    said = capsys.readouterr().out
    for call in parts.CALLS:
        assert f"| {call} | {kept['handlers'][call]['instructions']:,} |" in said
