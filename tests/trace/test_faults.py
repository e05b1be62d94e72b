"""What became of a fault, and why what it did was done: kind, access, result and causes against what is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from kerneld.hw.paging import pte_pkey
from shared.trace.events import (
    EXPAND_STACK,
    MM_FAULT,
    MM_PAGE_ALLOC,
    PAGE_FAULT_USER,
    PTE_REPLACE,
    PTE_SET,
    SIGNAL_DELIVER,
    SIGNAL_GENERATE,
    VMA_INSERT,
    Cause,
    FaultAccess,
    FaultKind,
    FaultResult,
)
from shared.trace.record import Record
from shared.uapi.mman import Madv
from shared.uapi.page import PAGE_SIZE, PMD_SIZE
from shared.uapi.syscalls import Access, Nr
from tests.support.programs import EXEC, NONE, PRIVATE, SHARED, Program, page
from tests.support.traced import TracedWorld

READS, WRITES = FaultAccess.READ, FaultAccess.WRITE
Scene = Callable[[Program, int], Callable[[], object]]


def fresh_store(program: Program, _fd: int) -> Callable[[], object]:
    program.mmap(1, at=page(0))
    return lambda: program.store(page(0), b"x")


def fresh_load(program: Program, _fd: int) -> Callable[[], object]:
    program.mmap(1, at=page(0))
    return lambda: program.load(page(0))


def store_after_load(program: Program, _fd: int) -> Callable[[], object]:
    program.mmap(1, at=page(0))
    program.load(page(0))
    return lambda: program.store(page(0), b"x")


def store_after_fork(program: Program, _fd: int) -> Callable[[], object]:
    program.mmap(1, at=page(0))
    program.store(page(0), b"x")
    program.call(Nr.CLONE)
    return lambda: program.store(page(0), b"y")


def store_after_swap_in(program: Program, fd: int) -> Callable[[], object]:
    swapped_out(program, fd)()
    return lambda: program.store(page(0), b"y")


def load_of_a_file(program: Program, fd: int) -> Callable[[], object]:
    program.mmap(2, flags=PRIVATE, at=page(0), fd=fd)
    return lambda: program.load(page(1))


def load_of_one_page_of_a_file(program: Program, fd: int) -> Callable[[], object]:
    program.mmap(1, flags=PRIVATE, at=page(0), fd=fd)
    return lambda: program.load(page(0))


def private_store_to_a_file(program: Program, fd: int) -> Callable[[], object]:
    program.mmap(1, flags=PRIVATE, at=page(0), fd=fd)
    return lambda: program.store(page(0), b"x")


def shared_store_to_a_file(program: Program, fd: int) -> Callable[[], object]:
    program.mmap(1, flags=SHARED, at=page(0), fd=fd)
    return lambda: program.store(page(0), b"x")


def shared_store_after_load(program: Program, fd: int) -> Callable[[], object]:
    program.mmap(1, flags=SHARED, at=page(0), fd=fd)
    program.load(page(0))
    return lambda: program.store(page(0), b"x")


def past_the_end_of_a_file(program: Program, fd: int) -> Callable[[], object]:
    program.mmap(4, flags=SHARED, at=page(0), fd=fd)
    return lambda: program.answer(Nr.STORE, page(3), 1, data=b"x")


def swapped_out(program: Program, _fd: int) -> Callable[[], object]:
    program.mmap(1, at=page(0))
    program.store(page(0), b"x")
    assert program.call(Nr.MADVISE, page(0), PAGE_SIZE, Madv.PAGEOUT) == 0
    assert program.in_memory(0, 1) == [0]
    return lambda: program.load(page(0))


def huge(program: Program, access: Access) -> Callable[[], object]:
    program.mmap(512, at=page(0))
    assert program.call(Nr.MADVISE, page(0), PMD_SIZE, Madv.HUGEPAGE) == 0
    return lambda: program.answer(Nr.TOUCH, page(5), 1, access)


def huge_store(program: Program, _fd: int) -> Callable[[], object]:
    return huge(program, Access.WRITE)


def huge_load(program: Program, _fd: int) -> Callable[[], object]:
    return huge(program, Access.READ)


SCENES: list[tuple[Scene, FaultKind, FaultAccess, FaultResult, int]] = [
    (fresh_store, FaultKind.ANONYMOUS, WRITES, FaultResult.MINOR, 1),
    (fresh_load, FaultKind.ZERO_PAGE, READS, FaultResult.MINOR, 1),
    (store_after_load, FaultKind.COW, WRITES, FaultResult.MINOR, 1),
    (store_after_fork, FaultKind.COW, WRITES, FaultResult.MINOR, 1),
    (store_after_swap_in, FaultKind.REUSE, WRITES, FaultResult.MINOR, 1),
    (load_of_a_file, FaultKind.FAULT_AROUND, READS, FaultResult.MINOR, 2),
    (load_of_one_page_of_a_file, FaultKind.FILE, READS, FaultResult.MINOR, 1),
    (private_store_to_a_file, FaultKind.COW, WRITES, FaultResult.MINOR, 1),
    (shared_store_to_a_file, FaultKind.FILE, WRITES, FaultResult.MINOR, 1),
    (shared_store_after_load, FaultKind.SHARED, WRITES, FaultResult.MINOR, 1),
    (past_the_end_of_a_file, FaultKind.FILE, WRITES, FaultResult.SIGBUS, 1),
    (swapped_out, FaultKind.SWAP_IN, READS, FaultResult.MAJOR, 1),
    (huge_store, FaultKind.HUGE, WRITES, FaultResult.MINOR, 512),
    (huge_load, FaultKind.HUGE_ZERO_PAGE, READS, FaultResult.MINOR, 512),
]


@pytest.fixture
def world() -> Iterator[TracedWorld]:
    made = TracedWorld(16 << 20, swap_bytes=1 << 20)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("scene", "kind", "access", "result", "pages"), SCENES, ids=lambda v: getattr(v, "__name__", "")
)
def test_a_fault_says_what_it_was(
    world: TracedWorld, fd: int, scene: Scene, kind: FaultKind, access: FaultAccess, result: FaultResult, pages: int
) -> None:
    program = world.attach()
    act = scene(program, fd)
    flt = program.process.min_flt, program.process.maj_flt
    with world.trace(pids=(program.pid,)) as trace:
        records = trace.during(act)
        (fault,) = [record for record in records if record.event is MM_FAULT]
        said = fault.fields
        assert (said["kind"], said["access"], said["nr_pages"]) == (kind, access, pages)
        assert said["result"] & ~FaultResult.MAJOR == result & ~FaultResult.MAJOR
        assert page(0) <= said["address"] < page(6)
        (exception,) = [record for record in records if record.event is PAGE_FAULT_USER]
        assert exception.fields["address"] == said["address"]
        for record in records:
            if record.event in (PTE_SET, PTE_REPLACE, MM_PAGE_ALLOC):
                assert record.causes == (Cause.ACCESS, Cause.FAULT)
                assert record.address == said["address"]
    major = int(said["result"] & FaultResult.MAJOR != 0)
    if not said["result"] & ~FaultResult.MAJOR:
        assert (program.process.min_flt, program.process.maj_flt) == (flt[0] + 1 - major, flt[1] + major)


def find(records: list[Record], event: object) -> Record:
    (found,) = [record for record in records if record.event is event]
    return found


def test_a_stack_grows_because_of_its_fault(world: TracedWorld) -> None:
    program = world.attach()
    stack = list(program.mm.vmas)[-1]
    low = stack.start
    with world.trace() as trace:
        grown = find(trace.during(lambda: program.store(low - 8, b"x")), EXPAND_STACK)
    assert grown.fields == {
        "mm": program.mm.number, "address": low - 8, "old_start": low, "start": low - PAGE_SIZE,
    }  # fmt: skip
    assert (grown.causes, grown.address, grown.owner) == ((Cause.ACCESS, Cause.FAULT), low - 8, program.pid)


@pytest.mark.parametrize(("prot", "code"), [(None, 1), (NONE, 2)])
def test_a_bad_access_raises_and_takes_a_signal(world: TracedWorld, prot: int | None, code: int) -> None:
    program = world.attach()
    if prot is not None:
        program.mmap(1, prot, at=page(0))
    pid = program.pid
    with world.trace() as trace:
        records = trace.during(lambda: program.answer(Nr.STORE, page(0), 1, data=b"x"))
    generated, delivered = find(records, SIGNAL_GENERATE).fields, find(records, SIGNAL_DELIVER).fields
    assert (generated["sig"], generated["code"], generated["pid"], generated["result"]) == (11, code, pid, 0)
    assert (delivered["sig"], delivered["code"], delivered["fatal"]) == (11, code, 1)


@pytest.mark.parametrize("is_there", [False, True])
def test_a_protection_key_is_told_of(world: TracedWorld, is_there: bool) -> None:
    """Of a page that is there the processor's error says it (X86_PF_PK); mappings and entries have the key in them."""
    program = world.attach()
    with world.trace() as trace:
        mapped = find(trace.during(lambda: program.mmap(1, EXEC, at=page(0))), VMA_INSERT).fields
        touched = trace.during(lambda: program.touch(0, 1, Access.FETCH)) if is_there else []
        records = trace.during(lambda: program.answer(Nr.LOAD, page(0), 1))
    assert mapped["vm_flags"] >> 32 == 1
    if is_there:
        assert pte_pkey(find(touched, PTE_SET).fields["new"]) == 1
    assert find(records, PAGE_FAULT_USER).fields["error_code"] == (0x25 if is_there else 4)
    delivered = find(records, SIGNAL_DELIVER).fields
    assert (delivered["code"], delivered["pkey"]) == (4, 1)


def test_many_stores_ahead_are_one_record_of_their_pages(world: TracedWorld) -> None:
    from kerneld.syscalls.ahead import fault_stores_ahead  # noqa: PLC0415
    from kerneld.syscalls.answer import Call  # noqa: PLC0415
    from shared.wire import Request  # noqa: PLC0415

    program = world.attach()
    program.mmap(64, at=page(0))
    stores = [Request(Nr.STORE, (page(number), 1, 0, 0, 0, 0), b"x") for number in range(64)]
    call = Call(world.kernel, program.thread, stores[0].args, b"x", [])
    with world.trace() as trace:
        records = trace.during(lambda: fault_stores_ahead(call, stores, 0))
    fault = find(records, MM_FAULT)
    assert (fault.fields["nr_pages"], fault.causes) == (64, (Cause.AHEAD, Cause.FAULT))
    assert (fault.pid, fault.tid, fault.nr) == (program.pid, program.thread.tid, Nr.STORE)
    set_pages = sum(record.fields["nr_pages"] for record in records if record.event is PTE_SET)
    assert set_pages == 64
    assert not [record for record in records if record.event is PAGE_FAULT_USER]
