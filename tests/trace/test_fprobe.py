"""Off means off: while nobody traces, every function of the kernel is, in every place, the one that it was."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

from kerneld.mm.space import mm as mm_module
from kerneld.server import exchange
from kerneld.syscalls import dispatch
from kerneld.trace.fprobe import FPROBES, Function
from kerneld.trace.probe import PROBES
from shared.recording.head import GLOBS
from tests.support.traced import TracedWorld


def everything() -> dict[tuple[str, str], object]:
    """Return every function, method and table item of the kernel by where it stands."""
    found: dict[tuple[str, str], object] = {}
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] != "kerneld" or name.startswith("kerneld.trace"):
            continue
        for key, value in vars(module).items():
            found[name, key] = value
            if isinstance(value, type):
                found.update({(f"{name}.{key}", own): held for own, held in vars(value).items()})
            elif isinstance(value, dict):
                found.update({(f"{name}.{key}", str(own)): held for own, held in value.items()})
    return found


def test_each_place_is_replaced_and_put_back(world: TracedWorld) -> None:
    before = everything()
    originals = {probe.function for probe in PROBES}
    places = {place for place, value in before.items() if callable(value) and value in originals}
    assert len(places) >= len(originals)
    with world.trace(*GLOBS):
        during = everything()
        assert {place for place in before if during[place] is not before[place]} == places
    after = everything()
    assert [place for place in before if after[place] is not before[place]] == []


def test_a_name_that_was_imported_is_replaced_as_well(world: TracedWorld) -> None:
    original = dispatch.run
    with world.trace():
        assert exchange.run is dispatch.run is not original  # type: ignore[attr-defined]
    assert exchange.run is dispatch.run is original  # type: ignore[attr-defined]


def test_only_what_the_wanted_events_need_is_replaced(world: TracedWorld) -> None:
    always = {probe.function for probe in PROBES if not probe.events}
    with world.trace("sched:sched_process_exec"):
        assert set(FPROBES.functions) == always
        with world.trace("kmem:mm_page_free"):
            assert len(FPROBES.functions) == len(always) + 3
        assert set(FPROBES.functions) == always


def shout(function: Function) -> Function:
    def shouting(*args: Any) -> Any:
        return ("wrapped", function(*args))

    return shouting


def whisper(function: Function) -> Function:
    def whispering(*args: Any) -> Any:
        return ("whispered", function(*args))

    return whispering


@pytest.mark.parametrize("first_out", [0, 1])
def test_wrappers_stand_in_each_other_and_each_can_leave_first(first_out: int) -> None:
    original: Callable[..., Any] = mm_module.vma_page_prot
    probes = [FPROBES.register(original, shout), FPROBES.register(mm_module.vma_page_prot, whisper)]
    current: Any = mm_module.vma_page_prot
    assert current.__name__ == "whispering"
    FPROBES.unregister(probes.pop(first_out))
    assert mm_module.vma_page_prot.__name__ == ("whispering", "shouting")[first_out]
    FPROBES.unregister(probes.pop())
    assert mm_module.vma_page_prot is original


def test_a_function_that_other_code_has_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the referee's rules: while a rule stood there, the places were looked for."""
    original = dispatch.run

    def rule(*args: Any) -> Any:
        return original(*args)

    with monkeypatch.context() as other:
        other.setattr(dispatch, "run", rule)
        FPROBES.unregister(FPROBES.register(original, shout))
    probe = FPROBES.register(original, shout)
    assert exchange.run is dispatch.run is not original  # type: ignore[attr-defined]
    FPROBES.unregister(probe)
    assert exchange.run is dispatch.run is original  # type: ignore[attr-defined]


def test_what_is_none_of_the_kernels_is_refused() -> None:
    with pytest.raises(ValueError, match="stands nowhere"):
        FPROBES.register(pytest.raises, shout)
    assert FPROBES.functions == []


def test_all_or_nothing(world: TracedWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    register, count = type(FPROBES).register, 0

    def failing(self: Any, function: Function, wrap: Any) -> Any:
        nonlocal count
        count += 1
        if count == 10:
            raise ValueError("no place")
        return register(self, function, wrap)

    before = everything()
    monkeypatch.setattr(type(FPROBES), "register", failing)
    with pytest.raises(ValueError, match="no place"):
        list(world.tracing.open(world.tracer.thread, b"\x10\0\0\0\1\0\0\0\0\0\0\0\2\0\0\0*\0"))
    assert FPROBES.functions == []
    after = everything()
    assert [place for place in before if after[place] is not before[place]] == []
