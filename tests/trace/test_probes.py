"""The wrappers of the probes do to their callers as the functions that they wrap."""

from __future__ import annotations

import contextlib
import inspect
import os
import struct

import pytest

from kerneld.trace.probe import PROBES, Probe
from shared.uapi.syscalls import Exec, Nr
from tests.support.programs import ROOT
from tests.support.traced import TracedWorld


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.function.__qualname__)
def test_a_wrapper_returns_what_the_function_does(probe: Probe) -> None:
    """mypy sees that a function returns what it says. A wrapper that says None loses what its function returns."""
    world = TracedWorld()
    wrapper = probe.factory(world.tracing, probe.function)
    returns = [inspect.signature(one).return_annotation for one in (probe.function, wrapper)]
    assert returns[1] not in (None, inspect.Signature.empty)
    assert returns[0] == "None" or returns[1] != "None"
    world.close()


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.function.__qualname__)
def test_a_wrapper_takes_what_the_function_takes(probe: Probe) -> None:
    """Each argument by its place, and those by name that have no place; with the optional ones, and without."""
    world = TracedWorld()
    wrapper = inspect.signature(probe.factory(world.tracing, probe.function))
    parameters = inspect.signature(probe.function).parameters.values()
    for optional in (True, False):
        given = [each for each in parameters if optional or each.default is each.empty]
        placed = [each.name for each in given if each.kind is each.POSITIONAL_OR_KEYWORD]
        named = {each.name: None for each in given if each.kind is each.KEYWORD_ONLY}
        assert wrapper.bind(*placed, **named)
    world.close()


def test_a_traced_execve_says_where_the_program_begins() -> None:
    """`kerneld exec` goes there: while anything was traced it ran no program."""
    answers = []
    for is_traced in (False, True):
        world = TracedWorld(16 << 20)
        program = world.attach(ROOT)
        with open("/bin/true", "rb") as file, world.trace("sched:*") if is_traced else contextlib.nullcontext():
            fds = [os.dup(file.fileno())]
            answer = program.answer(Nr.EXECVE, 0, 0, 0, Exec.ENTRY, data=b"true\0\0", fds=fds)
        assert answer.ret == 0
        answers.append(struct.unpack("<QQ", answer.data))
        world.close()
    assert answers[0] == answers[1]
    assert all(answers[0])
