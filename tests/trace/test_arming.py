"""What it takes to begin and end a trace: in a loop of these others must be served as if there were none."""

from __future__ import annotations

import os
from typing import Any, cast

import pytest

from kerneld.mm.space import mm as mm_module
from kerneld.server.batch import Batch
from kerneld.server.connection import Datagram, close_fds
from kerneld.server.daemon import TRACING_MODULES, _load_tracing
from kerneld.server.exchange import answer_datagram
from kerneld.trace import fprobe
from kerneld.trace.fprobe import FPROBES, Function
from shared import wire
from shared.trace.attr import MAX_GLOBS, TraceAttr
from shared.uapi.syscalls import Nr
from tests.support.long_requests import attached, call, kernel_in_pieces, pack
from tests.support.traced import TracedWorld


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Grows by one whenever every module of the kernel is looked through."""
    found: list[None] = []
    everything = fprobe._everything

    def counting() -> Any:
        found.append(None)
        return everything()

    monkeypatch.setattr(fprobe, "_everything", counting)
    return found


def test_the_modules_are_looked_through_once(world: TracedWorld, looks: list[None]) -> None:
    with world.trace():
        pass
    first = len(looks)
    for globs in (("*",), ("pte:*", "kmem:*"), ("*",)):
        with world.trace(*globs), world.trace("sched:*", "fault:*"):
            pass
    assert len(looks) == first


def test_what_stands_elsewhere_by_now_is_found(monkeypatch: pytest.MonkeyPatch, looks: list[None]) -> None:
    def wrap(function: Function) -> Function:
        return lambda *args: ("wrapped", function(*args))

    # What it finds while something else stands there is of no use to the tests that follow.
    monkeypatch.setattr(FPROBES, "_places", type(FPROBES._places)())
    original = mm_module.vma_page_prot
    FPROBES.unregister(FPROBES.register(original, wrap))
    before = len(looks)
    monkeypatch.setattr(mm_module, "vma_page_prot", lambda _vma: 7)
    standing: Any = mm_module.vma_page_prot
    probe = FPROBES.register(standing, wrap)
    assert len(looks) == before + 1
    replaced: Any = mm_module.vma_page_prot
    assert replaced(None) == ("wrapped", 7)
    FPROBES.unregister(probe)
    assert mm_module.vma_page_prot is standing


def test_others_are_served_while_globs_are_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    for kernel in kernel_in_pieces(monkeypatch):
        kernel.load_tracing = lambda kernel: _load_tracing(None, kernel)
        opener, other = attached(kernel, os.getpid()), attached(kernel, os.getppid())
        attr = TraceAttr(("ftrace:*",), functions=("*fault*",) * MAX_GLOBS, graph_functions=("*",) * MAX_GLOBS)
        datagram = Datagram(memoryview(pack(Nr.PERF_EVENT_OPEN, 0, data=attr.pack())), opener.sender, [], False, False)
        outcome = answer_datagram(kernel, cast(Any, opener), datagram, cast(Any, None), 0.0)
        served = 0
        while isinstance(outcome, Batch):
            served += call(other, Nr.GETPID).ret == os.getppid()
            outcome = outcome.run(0.0) or outcome
        close_fds(outcome.fds)
        (reply,) = wire.unpack_replies(outcome.answer)
        assert reply.ret > 0
        assert served >= len(TRACING_MODULES) + 2 * MAX_GLOBS


def test_a_glob_without_a_function_is_refused(world: TracedWorld) -> None:
    attr = TraceAttr(("ftrace:*",), functions=("*fault*", "no_such_function"))
    assert world.tracer.call(Nr.PERF_EVENT_OPEN, 0, data=attr.pack()) == -22
