"""The run queue and what dies on it: who is current, what CR3 names, who is left, signal by signal and end by end."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from signal import SIGKILL, SIGSEGV

import pytest

from kerneld.errors import KernelBug
from kerneld.syscalls.kernel import Kernel
from kerneld.task import cpu
from kerneld.task.entry import sysvec_apic_timer_interrupt
from kerneld.task.sched import TASK_DEAD, TASK_INTERRUPTIBLE, TASK_RUNNING, TIF_NEED_RESCHED, RunQueue, run_task
from kerneld.task.signal import send_signal_locked
from kerneld.task.task import Thread
from shared.uapi.signals import SI_KERNEL, Disposition, SegvCode
from shared.uapi.syscalls import Nr
from shared.wire import SigInfo
from tests.support.programs import BASE, Program, World, page


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()
    assert (world.kernel.rq.curr, world.kernel.rq.cr3, list(world.kernel.rq.queue)) == (None, 0, [])


def second_thread(program: Program) -> Program:
    """Return another thread of a program's process."""
    thread = Thread(program.pid + 1000, program.process)
    program.process.threads.append(thread)
    return Program(program.kernel, thread)


def rq_of(kernel: Kernel) -> tuple[Thread | None, int]:
    kernel.check()
    return kernel.rq.curr, kernel.rq.cr3


class TestSwitch:
    """`curr` and CR3 follow whoever's request is run."""

    def test_who_asks_is_current_and_cr3_is_its(self, world: World) -> None:
        first, second = world.attach(), world.attach()
        assert rq_of(world.kernel) == (second.thread, second.mm.page_table.cr3)
        first.call(Nr.GETPID)
        assert rq_of(world.kernel) == (first.thread, first.mm.page_table.cr3)
        assert (second.thread.on_rq, second.thread.state) == (False, TASK_INTERRUPTIBLE)
        assert first.mm.page_table.cr3 != second.mm.page_table.cr3

    def test_the_same_thread_again_is_no_switch(self, world: World) -> None:
        program = world.attach()
        before = world.kernel.rq.nr_switches
        program.call(Nr.GETPID)
        program.call(Nr.GETPID)
        assert world.kernel.rq.nr_switches == before

    def test_a_thread_of_the_same_process_keeps_cr3(self, world: World) -> None:
        program = world.attach()
        other = second_thread(program)
        cr3 = world.kernel.rq.cr3
        other.call(Nr.GETPID)
        assert rq_of(world.kernel) == (other.thread, cr3)

    def test_the_processor_translates_by_cr3(self, world: World) -> None:
        """What is loaded decides what an access finds: with another's page table, another's memory."""
        first, second = world.attach(), world.attach()
        for program, text in ((first, b"first"), (second, b"other")):
            program.mmap(1, at=BASE)
            program.store(BASE, text)
        rq = world.kernel.rq
        run_task(rq, first.thread)
        rq.pgd = second.mm.page_table
        try:
            assert cpu.load(first.thread, world.kernel.ram, BASE, 5) == b"other"
            with pytest.raises(KernelBug, match="another page table"):
                world.kernel.check()
        finally:
            rq.pgd = first.mm.page_table

    def test_execve_loads_the_new_page_table(self, world: World) -> None:
        program = world.attach()
        old = world.kernel.rq.cr3
        fd = os.open("/bin/true", os.O_RDONLY)
        try:
            assert program.call(Nr.EXECVE, data=b"true\0\0", fds=[fd]) == 0
        finally:
            os.close(fd)
        assert rq_of(world.kernel) == (program.thread, program.mm.page_table.cr3)
        assert world.kernel.rq.cr3 != old

    def test_while_a_process_attaches_nobody_is_current(self, world: World) -> None:
        world.attach()
        seen: list[Thread | None] = []

        def note(_order: int) -> None:
            seen.append(world.kernel.rq.curr)

        world.kernel.frames.alloc_hook = note
        world.attach()
        world.kernel.frames.alloc_hook = None
        assert seen
        assert set(seen) == {None}


class TestSlices:
    """A thread whose slice is over waits behind those that wait; one that has answered does not wait at all."""

    def test_a_used_up_slice_gives_the_processor_away(self, world: World) -> None:
        program = world.attach()
        rq = world.kernel.rq
        sysvec_apic_timer_interrupt(program.thread)
        assert (rq.curr, list(rq.queue)) == (None, [program.thread])
        assert not program.thread.flags & TIF_NEED_RESCHED
        assert rq.cr3 == program.mm.page_table.cr3, "the loop has no memory of its own: CR3 stays"
        world.kernel.check()
        program.call(Nr.GETPID)
        assert (rq.curr, list(rq.queue)) == (program.thread, [])

    def test_round_robin(self, world: World) -> None:
        programs = [world.attach() for _ in range(3)]
        for program in programs:
            program.call(Nr.GETPID)
            sysvec_apic_timer_interrupt(program.thread)
        queue = world.kernel.rq.queue
        assert list(queue) == [program.thread for program in programs]
        programs[0].call(Nr.GETPID)
        sysvec_apic_timer_interrupt(programs[0].thread)
        assert list(queue) == [programs[i].thread for i in (1, 2, 0)]

    def test_who_comes_from_sleep_does_not_disturb_those_that_wait(self, world: World) -> None:
        waiting, other = world.attach(), world.attach()
        waiting.call(Nr.GETPID)
        sysvec_apic_timer_interrupt(waiting.thread)
        other.call(Nr.GETPID)
        assert (world.kernel.rq.curr, list(world.kernel.rq.queue)) == (other.thread, [waiting.thread])
        world.kernel.check()

    def test_who_dies_waiting_waits_no_more(self, world: World) -> None:
        program = world.attach()
        sysvec_apic_timer_interrupt(program.thread)
        world.kernel.process_died(program.process)
        assert (list(world.kernel.rq.queue), program.thread.state) == ([], TASK_DEAD)


class TestDeath:
    """Nobody dead is on the run queue, is current, or is what CR3 names."""

    def test_a_fatal_signal(self, world: World) -> None:
        program, bystander = world.attach(), world.attach()
        other = second_thread(program)
        other.call(Nr.GETPID)
        answer = program.answer(Nr.STORE, 0, 4, data=b"\5\0\0\0")
        assert (answer.signo, answer.siginfo) == (SIGSEGV, SigInfo(SegvCode.MAPERR, True, 0))
        assert rq_of(world.kernel) == (None, 0)
        assert (program.process.ended, program.process.threads, program.process.exit_signal) == (True, [], SIGSEGV)
        assert [program.thread.state, other.thread.state] == [TASK_DEAD, TASK_DEAD]
        assert (program.thread.flags, program.thread.pending, program.thread.siginfo) == (0, 0, {})
        assert not bystander.process.ended

    def test_a_caught_signal_is_no_death(self, world: World) -> None:
        program = world.attach()
        assert program.call(Nr.RT_SIGACTION, SIGSEGV, Disposition.CAUGHT) == 0
        answer = program.answer(Nr.STORE, 0, 4, data=b"\5\0\0\0")
        assert (answer.signo, answer.siginfo) == (SIGSEGV, SigInfo(SegvCode.MAPERR, False, 0))
        assert rq_of(world.kernel) == (program.thread, program.mm.page_table.cr3)
        assert (program.thread.flags, program.thread.pending) == (0, 0)

    def test_sigkill_comes_before_what_is_caught(self, world: World) -> None:
        """Marked for death, a thread runs no handler, whatever came first."""
        program = world.attach()
        program.call(Nr.RT_SIGACTION, SIGSEGV, Disposition.CAUGHT)
        send_signal_locked(program.thread, SIGSEGV, SigInfo(SegvCode.MAPERR, False, 0))
        send_signal_locked(program.thread, SIGKILL, SigInfo(SI_KERNEL, False, 0))
        answer = program.answer(Nr.GETPID)
        assert answer.signo == SIGKILL
        assert (program.process.exit_signal, rq_of(world.kernel)) == (SIGKILL, (None, 0))

    def test_a_signal_that_is_pending_keeps_its_first_siginfo(self, world: World) -> None:
        program = world.attach()
        program.call(Nr.RT_SIGACTION, SIGSEGV, Disposition.CAUGHT)
        for address in (page(1), page(2)):
            send_signal_locked(program.thread, SIGSEGV, SigInfo(SegvCode.MAPERR, False, address))
        answer = program.answer(Nr.GETPID)
        assert answer.siginfo == SigInfo(SegvCode.MAPERR, False, page(1))
        assert program.answer(Nr.GETPID).signo == 0

    @pytest.mark.parametrize("nr", [Nr.EXIT, Nr.EXIT_GROUP])
    def test_exit(self, world: World, nr: Nr) -> None:
        program = world.attach()
        assert program.call(nr, 0) == 0
        assert rq_of(world.kernel) == (None, 0)
        assert program.thread.state == TASK_DEAD

    def test_exit_of_one_thread_leaves_the_others_their_memory(self, world: World) -> None:
        program = world.attach()
        other = second_thread(program)
        assert other.call(Nr.EXIT, 0) == 0
        assert world.kernel.rq.curr is None
        program.mmap(1, at=BASE)
        program.store(BASE, b"alive")
        assert rq_of(world.kernel) == (program.thread, program.mm.page_table.cr3)

    def test_a_thread_whose_connection_is_gone_takes_nothing_from_the_running_one(self, world: World) -> None:
        program = world.attach()
        other = second_thread(program)
        other.call(Nr.GETPID)
        program.call(Nr.GETPID)
        world.kernel.thread_exited(other.thread)
        assert rq_of(world.kernel) == (program.thread, program.mm.page_table.cr3)
        assert program.call(Nr.GETPID) == program.pid

    def test_execve_ends_the_other_threads(self, world: World) -> None:
        program = world.attach()
        other = second_thread(program)
        other.call(Nr.GETPID)
        sysvec_apic_timer_interrupt(other.thread)
        fd = os.open("/bin/true", os.O_RDONLY)
        try:
            assert program.call(Nr.EXECVE, data=b"true\0\0", fds=[fd]) == 0
        finally:
            os.close(fd)
        assert (other.thread.state, list(world.kernel.rq.queue)) == (TASK_DEAD, [])
        assert program.process.threads == [program.thread]

    def test_the_real_process_dies_while_another_is_served(self, world: World) -> None:
        victim, running = world.attach(), world.attach()
        victim.call(Nr.GETPID)
        running.call(Nr.GETPID)
        world.kernel.process_died(victim.process)
        assert rq_of(world.kernel) == (running.thread, running.mm.page_table.cr3)
        assert victim.process.ended

    def test_the_real_process_dies_as_the_last_that_was_served(self, world: World) -> None:
        program = world.attach()
        program.call(Nr.GETPID)
        world.kernel.process_died(program.process)
        assert rq_of(world.kernel) == (None, 0)


class TestCheck:
    """The check itself sees what is wrong: it runs after every request in tests."""

    @pytest.mark.parametrize(
        ("wrong", "what"),
        [
            (lambda rq, thread: rq.queue.append(thread), "waits to run"),
            (lambda rq, thread: setattr(thread, "on_rq", False), "on the run queue"),
            (lambda rq, thread: setattr(thread, "state", TASK_DEAD), "on the run queue"),
            (lambda rq, thread: setattr(rq, "mm", None), "another page table"),
        ],
    )
    def test_it_raises(self, world: World, wrong: Callable[[RunQueue, Thread], None], what: str) -> None:
        program = world.attach()
        rq = world.kernel.rq
        wrong(rq, program.thread)
        with pytest.raises(KernelBug, match=what):
            world.kernel.check()
        rq.queue.clear()
        program.thread.on_rq, program.thread.state, rq.mm = True, TASK_RUNNING, program.mm

    def test_an_address_space_that_has_gone(self, world: World) -> None:
        program, gone = world.attach(), world.attach()
        mm = gone.mm
        world.kernel.process_died(gone.process)
        world.kernel.rq.mm, world.kernel.rq.pgd = mm, mm.page_table
        with pytest.raises(KernelBug, match="has gone"):
            world.kernel.check()
        program.call(Nr.GETPID)
