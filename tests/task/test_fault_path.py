"""The functions of a fault, in the order in which they are called: Linux v6.8's, seen by Python's own profiler."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from signal import SIGSEGV
from types import FrameType
from typing import Any

import pytest

from shared.uapi.signals import Disposition
from shared.uapi.syscalls import Nr
from tests.support.programs import BASE, READ, World

ENTRY = ["exc_page_fault", "handle_page_fault", "do_user_addr_fault", "lock_vma_under_rcu"]
NO_VMA = ["lock_mm_and_find_vma", "find_vma", "bad_area_nosemaphore", "__bad_area_nosemaphore"]
SEND = [
    *("force_sig_fault", "force_sig_fault_to_task", "force_sig_info_to_task", "send_signal_locked", "sigaddset"),
    "signal_wake_up",
]
BACK = ["irqentry_exit", "irqentry_exit_to_user_mode", "exit_to_user_mode_prepare"]
SIGNAL = ["exit_to_user_mode_loop", "arch_do_signal_or_restart", "get_signal", "dequeue_signal"]
DEATH = [
    *(
        "do_group_exit",
        "zap_other_threads",
        "do_exit",
        "enter_lazy_tlb",
        "exit_mm",
        "mmput",
        "exit_mmap",
        "exit_notify",
        "do_task_dead",
    ),
    *("__schedule", "deactivate_task", "dequeue_task", "pick_next_task", "context_switch"),
]
OF_INTEREST = {*ENTRY, *NO_VMA, *SEND, *BACK, *SIGNAL, *DEATH, "handle_signal", "handle_mm_fault", "expand_stack"}
OF_INTEREST |= {"bad_area_access_error", "exc_general_protection"}


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


def functions_of(call: Callable[[], object]) -> list[str]:
    """Return the kernel's functions that matter here, as `call` calls them."""
    names: list[str] = []

    def note(frame: FrameType, event: str, _arg: Any) -> None:
        module = frame.f_globals.get("__name__", "")
        if event == "call" and module.startswith("kerneld.") and frame.f_code.co_name in OF_INTEREST:
            names.append(frame.f_code.co_name)

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return names


def test_a_write_through_a_null_pointer(world: World) -> None:
    program = world.attach()
    program.mmap(1, READ, at=BASE)  # What a program has above the null pointer: no stack, which would be asked to grow.
    names = functions_of(lambda: program.answer(Nr.STORE, 0, 4, data=b"\5\0\0\0"))
    assert names == [*ENTRY, *NO_VMA, *SEND, *BACK, *SIGNAL, *DEATH]


def test_a_fault_that_is_settled_looks_for_work_and_has_none(world: World) -> None:
    program = world.attach()
    program.mmap(1, at=BASE)
    assert functions_of(lambda: program.store(BASE, b"x")) == [*ENTRY, "handle_mm_fault", *BACK]


def test_a_caught_signal_is_handled_not_died_of(world: World) -> None:
    program = world.attach()
    program.mmap(1, READ, at=BASE)
    program.call(Nr.RT_SIGACTION, SIGSEGV, Disposition.CAUGHT)
    names = functions_of(lambda: program.answer(Nr.STORE, 0, 4, data=b"\5\0\0\0"))
    assert names == [*ENTRY, *NO_VMA, *SEND, *BACK, *SIGNAL, "handle_signal"]


def test_a_vma_that_forbids_it_is_found_at_once(world: World) -> None:
    program = world.attach()
    program.mmap(1, READ, at=BASE)
    program.call(Nr.RT_SIGACTION, SIGSEGV, Disposition.CAUGHT)
    names = functions_of(lambda: program.answer(Nr.STORE, BASE, 1, data=b"x"))
    assert names == [
        *(*ENTRY, "bad_area_access_error", "__bad_area_nosemaphore"),
        *(*SEND, *BACK, *SIGNAL, "handle_signal"),
    ]


def test_below_the_stack_the_slow_look_lets_it_grow(world: World) -> None:
    program = world.attach()
    stack = max(program.mm.vmas, key=lambda vma: vma.start)
    names = functions_of(lambda: program.store(stack.start - 8, b"x"))
    assert names == [*ENTRY, "lock_mm_and_find_vma", "find_vma", "expand_stack", "handle_mm_fault", *BACK]


def test_an_address_that_is_none_asks_no_vma(world: World) -> None:
    program = world.attach()
    names = functions_of(lambda: program.answer(Nr.STORE, 1 << 50, 1, data=b"x"))
    assert names[0] == "exc_general_protection"
    assert names[-len(DEATH) :] == DEATH, names
    assert not {"find_vma", "lock_vma_under_rcu"} & set(names)
