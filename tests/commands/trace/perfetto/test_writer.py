"""Perfetto files: parsed by Perfetto's own messages, and held against what the kernel really did."""

from __future__ import annotations

import io
import signal
from collections.abc import Callable
from typing import Any

import pytest

from kerneld.commands.trace.perfetto.writer import PerfettoWriter
from kerneld.commands.trace.writers import EVERYTHING
from kerneld.task import table
from shared.trace.record import Comm, Entry, Lost
from shared.uapi.page import PAGE_SIZE
from shared.uapi.syscalls import Access, Nr
from tests.commands.trace.perfetto.perfetto_file import PerfettoFile
from tests.support.programs import BASE, READ, Program, page
from tests.support.traced import TracedWorld


def write(entries: list[Entry], into: io.BytesIO | None = None) -> bytes:
    """Return the file of a trace, written at one go."""
    file = into or io.BytesIO()
    writer = PerfettoWriter(file)
    for entry in entries:
        if isinstance(entry, Comm):
            writer.name(entry)
        elif isinstance(entry, Lost):
            writer.lost(entry)
        else:
            writer.event(entry)
    writer.close()
    return file.getvalue()


def file_of(world: TracedWorld, act: Callable[[], Any], *globs: str) -> PerfettoFile:
    with world.trace(*(globs or EVERYTHING["perfetto"])) as trace:
        act()
        return PerfettoFile(write(trace.entries()))


def resident(program: Program) -> int:
    """Return the second number of /proc/self/statm."""
    answer = program.answer(Nr.PROCREAD, 0, 4096, data=b"self/statm")
    return int(answer.data.split()[1])


def test_a_call_is_a_slice_with_what_it_was_asked_and_what_it_said(world: TracedWorld, program: Program) -> None:
    file = file_of(world, lambda: program.mmap(2, at=BASE))
    (call,) = file.slices[program.pid]
    assert (call.name, call.category) == ("mmap", "syscall")
    assert (call.args["arg0"], call.args["arg1"], call.args["ret"]) == (BASE, 2 * PAGE_SIZE, BASE)
    assert call.args["call"].startswith(f"mmap({BASE:#x}, 8192, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_FIXED|")
    (inserted,) = [one for one in file.instants[program.pid] if one.name == "vma_insert"]
    assert call.begin <= inserted.begin <= call.end
    assert (inserted.category, inserted.args["start"]) == ("vma", BASE)


def test_the_fault_of_a_store_is_nested_in_it(world: TracedWorld, program: Program) -> None:
    program.mmap(2, at=BASE)
    file = file_of(world, lambda: program.store(BASE + 5, b"x"))
    (store,) = file.slices[program.pid]
    (fault,) = store.children
    assert (store.name, store.category, store.args["ret"]) == ("store", "access", 1)
    assert (fault.name, fault.category) == ("page fault", "fault")
    assert (fault.args["address"], fault.args["kind"], fault.args["result"]) == (BASE + 5, "anonymous", "minor")
    assert store.begin <= fault.begin < fault.end <= store.end
    (entry,) = [one for one in file.instants[program.pid] if one.name == "set"]
    assert fault.begin <= entry.begin <= fault.end


def test_faults_in_a_row_are_slices_in_a_row(world: TracedWorld, program: Program) -> None:
    program.mmap(3, at=BASE)

    def touch_twice() -> None:
        program.touch(0, 3, Access.READ)
        program.touch(0, 3, Access.WRITE)

    file = file_of(world, touch_twice)
    reads, writes = file.slices[program.pid]
    assert {fault.args["kind"] for fault in reads.children} == {"zero_page"}
    assert sum(fault.args["nr_pages"] for fault in reads.children) == 3
    assert [fault.args["kind"] for fault in writes.children] == ["cow"] * 3
    assert [fault.args["address"] for fault in writes.children] == [page(number) for number in range(3)]


def test_faults_that_a_call_takes_are_nested_in_it(world: TracedWorld, program: Program) -> None:
    program.mmap(4, at=BASE)
    file = file_of(world, lambda: program.call(Nr.MLOCK, BASE, 4 * PAGE_SIZE))
    (call,) = file.slices[program.pid]
    assert call.name == "mlock"
    assert sum(fault.args["nr_pages"] for fault in call.children if fault.name == "page fault") == 4


def test_a_fatal_fault_ends_with_its_access(world: TracedWorld, program: Program) -> None:
    file = file_of(world, lambda: program.answer(Nr.STORE, 0, 1, data=b"x"))
    (store,) = file.slices[program.pid]
    assert store.args["signo"] == signal.SIGSEGV
    assert store.children[0].args["address"] == 0
    names = [one.name for one in file.instants[program.pid]]
    assert [name for name in names if name.startswith(("signal", "sched"))] == [
        "signal_generate", "signal_deliver", "sched_process_exit",
    ]  # fmt: skip
    assert file.counters[program.pid][-1][1] == 0


def test_the_counter_is_what_statm_says_after_each_step(
    world: TracedWorld, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "find_ppid", lambda _pid: program.pid)
    steps: list[Callable[[], Any]] = [
        lambda: program.mmap(64, at=BASE),
        lambda: program.touch(0, 40),
        lambda: program.call(Nr.MLOCK, page(40), 10 * PAGE_SIZE),
        lambda: program.call(Nr.MUNMAP, page(10), 20 * PAGE_SIZE),
        lambda: program.call(Nr.MADVISE, page(0), 3 * PAGE_SIZE, 4),
        lambda: program.touch(0, 2, Access.READ),
        lambda: program.call(Nr.MREMAP, page(40), 8 * PAGE_SIZE, 2 * PAGE_SIZE),
    ]
    with world.trace(*EVERYTHING["perfetto"]) as trace:
        entries: list[Entry] = trace.entries()
        values = [PerfettoFile(write(entries)).counters[program.pid][-1][1]]
        truths = [resident(program)]
        for step in steps:
            step()
            entries += trace.entries()
            values.append(PerfettoFile(write(entries)).counters[program.pid][-1][1])
            truths.append(resident(program))
        child = world.attach(token=program.call(Nr.CLONE))
        entries += trace.entries()
        forked = PerfettoFile(write(entries)).counters[child.pid]
        assert forked[-1][1] == resident(child) == truths[-1]
    assert values == truths
    assert len(set(truths)) > 4


def test_what_was_there_before_is_counted(world: TracedWorld, program: Program) -> None:
    program.mmap(8, at=BASE)
    program.touch(0, 8)
    file = file_of(world, lambda: program.touch(0, 8, Access.READ))
    assert [value for _, value in file.counters[program.pid]] == [resident(program)]


def test_processes_and_threads_have_names(world: TracedWorld, program: Program) -> None:
    file = file_of(world, lambda: (program.call(Nr.GETPID), world.tracer.call(Nr.GETPID)))
    assert {program.pid, world.tracer.pid} <= file.processes.keys()
    assert file.processes[program.pid] == program.process.comm
    assert set(file.threads.values()) == {(one.pid, one.thread.tid) for one in (program, world.tracer)}


def test_what_acts_on_another_process_says_whose_memory(world: TracedWorld, program: Program) -> None:
    program.mmap(1, at=BASE)
    world.tracer.mmap(1, at=BASE)
    vectors = b"".join(number.to_bytes(8, "little") for number in (BASE, 8, BASE, 8))
    write_to = (Nr.PROCESS_VM_WRITEV, program.pid, 0, 1, 0, 1, 0)
    file = file_of(world, lambda: world.tracer.call(*write_to, data=vectors))
    entry = next(one for one in file.instants[world.tracer.pid] if one.name == "set" and "owner" in one.args)
    assert entry.args["owner"] == program.pid
    assert file.counters[program.pid][-1][1] == resident(program) == 1


def test_each_write_leaves_a_whole_file(world: TracedWorld, program: Program) -> None:
    file = io.BytesIO()
    writer = PerfettoWriter(file)
    with world.trace(*EVERYTHING["perfetto"]) as trace:
        for number in range(4):
            program.mmap(1, READ)
            for entry in trace.entries():
                writer.name(entry) if isinstance(entry, Comm) else writer.event(entry)  # type: ignore[arg-type]
            writer.flush()
            assert len(PerfettoFile(file.getvalue()).slices[program.pid]) == number + 1


@pytest.mark.parametrize("cut", [0.2, 0.5, 0.8])
def test_a_trace_that_breaks_off_anywhere_is_a_file(world: TracedWorld, program: Program, cut: float) -> None:
    program.mmap(4, at=BASE)
    with world.trace(*EVERYTHING["perfetto"]) as trace:
        program.touch(0, 4)
        program.call(Nr.MUNMAP, BASE, 4 * PAGE_SIZE)
        entries = trace.entries()
    part = entries[: int(len(entries) * cut)]
    whole = PerfettoFile(write(entries)).slices[program.pid]
    assert len(PerfettoFile(write(part)).slices[program.pid]) <= len(whole) == 2
    lossy = PerfettoFile(write([*part, Lost(7), *entries[len(part) + 7 :]]))
    assert [one.name for one in lossy.instants[0]] == ["7 events lost"]


def test_without_beginnings_and_ends_a_call_is_what_is_seen_of_it(world: TracedWorld, program: Program) -> None:
    file = file_of(world, lambda: program.mmap(1, at=BASE), "vma:*")
    (call,) = file.slices[program.pid]
    assert call.name == "mmap"
    assert "ret" not in call.args
