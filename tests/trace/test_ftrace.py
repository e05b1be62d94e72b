"""The function tracer: what it sees, what it leaves out, who may look, and that nothing of it stays."""

from __future__ import annotations

import errno
import fnmatch
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from kerneld.mm.calls import fork
from kerneld.task import cpu
from kerneld.trace import ftrace
from kerneld.trace.ftrace import available_filter_functions, check_globs
from kerneld.trace.ring import Ring
from shared.trace.attr import MAX_GLOB_BYTES, MAX_GLOBS, TraceAttr, unpack_attr
from shared.trace.events import FTRACE, FUNCGRAPH_ENTRY, FUNCGRAPH_EXIT, FUNCTION, matching
from shared.trace.reader import Reader
from shared.trace.record import Lost, Record
from shared.uapi.mman import Map
from shared.uapi.page import PMD_SIZE
from shared.uapi.syscalls import Nr
from tests.support.programs import ANON, BASE, USER, Program
from tests.support.traced import TracedWorld

GRAPH = ("ftrace:funcgraph_*",)


class Functions:
    """A trace of functions, read in the test."""

    def __init__(self, opener: Program, attr: TraceAttr) -> None:
        answer = opener.answer(Nr.PERF_EVENT_OPEN, 0, data=attr.pack())
        assert answer.ret > 0
        self.handle = answer.ret
        self.reader = Reader(*answer.fds)

    def records(self) -> list[Record]:
        return [entry for entry in self.reader.read() if isinstance(entry, Record)]

    def calls(self) -> list[tuple[int, str]]:
        """Return depth and name of each call, as it began."""
        return [
            (record.fields["depth"], record.fields["func"])
            for record in self.records()
            if record.event is FUNCGRAPH_ENTRY
        ]


@contextmanager
def functions(
    world: TracedWorld,
    names: Sequence[str] = (),
    inside: Sequence[str] = (),
    pids: Sequence[int] = (),
    events: tuple[str, ...] = GRAPH,
    opener: Program | None = None,
    data_pages: int = 4096,
) -> Iterator[Functions]:
    who = opener or world.tracer
    trace = Functions(who, TraceAttr(events, tuple(pids), data_pages, tuple(names), tuple(inside)))
    try:
        yield trace
    finally:
        if not who.process.ended:
            assert who.call(Nr.CLOSE, trace.handle) == 0
        trace.reader.close()


def open_errno(opener: Program, attr: TraceAttr) -> int:
    return -opener.answer(Nr.PERF_EVENT_OPEN, 0, data=attr.pack()).ret


def test_a_call_is_a_tree_whose_every_function_ends(world: TracedWorld, program: Program) -> None:
    program.mmap(1, at=BASE)
    with functions(world, pids=[program.pid]) as trace:
        program.store(BASE, b"x")
        records = trace.records()
    open_calls: list[str] = []
    for record in records:
        fields = record.fields
        assert (record.pid, record.nr) == (program.pid, Nr.STORE)
        if record.event is FUNCGRAPH_ENTRY:
            assert fields["depth"] == len(open_calls)
            open_calls.append(fields["func"])
        else:
            assert record.event is FUNCGRAPH_EXIT
            assert (fields["func"], fields["depth"]) == (open_calls.pop(), len(open_calls))
            assert fields["calltime"] <= fields["rettime"]
    assert open_calls == []
    names = [record.fields["func"] for record in records if record.event is FUNCGRAPH_ENTRY]
    assert names[0] == "run"
    assert {"exc_page_fault", "PageTable.translate", "VmaTree.lookup", "do_anonymous_page"} <= set(names)


def test_off_is_off(world: TracedWorld, program: Program) -> None:
    before = cpu.store
    assert sys.getprofile() is None
    with functions(world):
        assert sys.getprofile() is not None
    assert sys.getprofile() is None
    assert cpu.store is before


def test_two_at_once_and_each_gets_its_own(world: TracedWorld, program: Program) -> None:
    with functions(world, ["sys_getpid"]) as first:
        with functions(world, ["sys_getuid"]) as second:
            program.call(Nr.GETPID)
            program.call(Nr.GETUID)
            assert [name for _, name in second.calls()] == ["sys_getuid"]
        program.call(Nr.GETPID)
        assert [name for _, name in first.calls()] == ["sys_getpid"] * 2
    assert sys.getprofile() is None


def test_an_events_trace_alone_has_no_functions(world: TracedWorld, program: Program) -> None:
    """Functions are many: they come to who names them, not to who wants everything."""
    assert not FTRACE & {event.number for glob in ("*", "f*", "func*", "*:*") for event in matching(glob)}
    with world.trace("*") as trace:
        program.call(Nr.GETPID)
        assert sys.getprofile() is None
        assert not any(record.event.number in FTRACE for record in trace.records())


def test_a_function_that_an_exception_leaves_has_ended(world: TracedWorld, program: Program) -> None:
    with functions(world, ["do_munmap", "sys_munmap"]) as trace:
        assert program.call(Nr.MUNMAP, 1, 1) == -errno.EINVAL
        kinds = [(record.event, record.fields["func"]) for record in trace.records()]
    assert kinds == [
        (FUNCGRAPH_ENTRY, "sys_munmap"),
        (FUNCGRAPH_ENTRY, "do_munmap"),
        (FUNCGRAPH_EXIT, "do_munmap"),
        (FUNCGRAPH_EXIT, "sys_munmap"),
    ]


def test_comprehensions_and_the_tracing_itself_are_no_functions(world: TracedWorld, program: Program) -> None:
    with functions(world) as trace:
        program.mmap(4, at=BASE)
        program.touch(0, 0)
        world.kernel.process_died(program.process)
        names = {name for _, name in trace.calls()}
    assert "do_exit" in names
    assert not {name for name in names if "<" in name}
    assert not names & {"Tracing.flush", "Ring.write", "_enter", "Tracepoint.emit"}


def test_a_filter_takes_names_with_and_without_the_class(world: TracedWorld, program: Program) -> None:
    program.mmap(1, at=BASE)
    with functions(world, ["find_?te", "VmaTree.loo*"]) as trace:
        program.store(BASE, b"x")
        names = {name for _, name in trace.calls()}
    assert names == {"PageTable.find_pte", "VmaTree.lookup"}


def test_a_graph_function_and_what_is_inside_it(world: TracedWorld, program: Program) -> None:
    program.mmap(2, at=BASE)
    with functions(world, inside=["do_user_addr_fault"]) as trace:
        program.store(BASE, b"x")
        program.call(Nr.GETPID)
        calls = trace.calls()
    assert calls[0] == (0, "do_user_addr_fault")
    assert calls[1] == (1, "lock_vma_under_rcu")
    assert [name for depth, name in calls if depth == 0] == ["do_user_addr_fault"]


def test_a_filter_holds_inside_a_graph_function(world: TracedWorld, program: Program) -> None:
    program.mmap(1, at=BASE)
    with functions(world, ["handle_mm_fault", "do_user_addr_fault"], ["do_user_addr_fault"]) as trace:
        program.store(BASE, b"x")
        assert trace.calls() == [(0, "do_user_addr_fault"), (1, "handle_mm_fault")]


def test_the_plain_tracer_names_the_caller(world: TracedWorld, program: Program) -> None:
    with functions(world, ["sys_getpid"], events=(FUNCTION.name,)) as trace:
        program.call(Nr.GETPID)
        (record,) = trace.records()
    assert record.fields == {"func": "sys_getpid", "parent": "run"}


def test_one_process_alone(world: TracedWorld, program: Program) -> None:
    other = world.attach()
    with functions(world, ["sys_getpid"], pids=[program.pid]) as trace:
        other.call(Nr.GETPID)
        program.call(Nr.GETPID)
        assert [record.pid for record in trace.records()] == [program.pid] * 2


def test_what_does_not_fit_is_counted(world: TracedWorld, program: Program) -> None:
    with functions(world, ["sys_getpid"], data_pages=1) as trace:
        for _ in range(40):
            program.call(Nr.GETPID)
        entries = list(trace.reader.read())
        program.call(Nr.GETPID)
        entries += trace.reader.read()
        lost = trace.reader.lost
    assert lost > 0
    assert sum(isinstance(entry, Record) for entry in entries) + lost == 2 * 41
    assert sum(entry.records for entry in entries if isinstance(entry, Lost)) == lost


def test_a_long_request_is_written_before_its_end(world: TracedWorld, program: Program) -> None:
    """Its records would else be held in the daemon's memory, however many it makes."""
    program.mmap(16, at=BASE)
    sizes: list[int] = []

    def look(_order: int) -> None:
        sizes.append(max(len(trace.records) for trace in world.tracing._traces))

    with functions(world) as trace:
        world.kernel.frames.alloc_hook = look
        program.store(BASE, b"x" * (16 << 12))
        world.kernel.frames.alloc_hook = None
        assert len(trace.records()) > 600
    assert 0 < max(sizes) < 600


def test_everybodys_functions_are_the_superusers(world: TracedWorld, program: Program) -> None:
    assert open_errno(program, TraceAttr(GRAPH)) == errno.EPERM
    assert open_errno(program, TraceAttr(("*", *GRAPH))) == errno.EPERM
    other = world.attach(USER + 1)
    assert open_errno(program, TraceAttr(GRAPH, (other.pid,))) == errno.EPERM
    with functions(world, ["sys_getpid"], pids=[program.pid], opener=program) as trace:
        other.call(Nr.GETPID)
        world.tracer.call(Nr.GETPID)
        program.call(Nr.GETPID)
        assert {record.pid for record in trace.records()} == {program.pid}
    assert sys.getprofile() is None


def test_names_that_no_function_has_are_refused(world: TracedWorld) -> None:
    for names, inside in ((("nonesuch",), ()), (("do_exit", "nonesuch_*"), ()), ((), ("nonesuch",))):
        assert open_errno(world.tracer, TraceAttr(GRAPH, (), 1, names, inside)) == errno.EINVAL
    assert sys.getprofile() is None


def test_the_end_of_the_opener_is_the_end_of_the_hook(world: TracedWorld, program: Program) -> None:
    opener = world.attach(0)
    with functions(world, opener=opener):
        world.kernel.process_died(opener.process)
        assert sys.getprofile() is None
        program.call(Nr.GETPID)


def test_the_death_of_a_traced_process_is_seen_to_its_end(world: TracedWorld, program: Program) -> None:
    with functions(world, ["do_exit", "context_switch"], pids=[program.pid]) as trace:
        program.answer(Nr.STORE, 0, 1, data=b"x")
        assert program.process.ended
        assert [name for _, name in trace.calls()][-2:] == ["do_exit", "context_switch"]


def test_available_functions_are_the_kernels_alone() -> None:
    names = set(available_filter_functions())
    assert {b"do_exit", b"VmaTree.lookup", b"Process.live_mm", b"__schedule"} <= names
    assert b"FunctionTracer.open" not in names
    assert b"monotonic_ns" not in names


class TestAttr:
    """The structure that opens a trace, from whoever sends it."""

    def test_what_goes_in_comes_out(self) -> None:
        attr = TraceAttr(("a:b",), (1, 2), 8, ("x*", "y"), ("z",))
        assert unpack_attr(attr.pack()) == attr

    def test_a_structure_without_functions(self) -> None:
        """The first 16 bytes stood alone before there was a function tracer."""
        data = b"\x10\0\0\0\x08\0\0\0\0\0\0\0\x02\0\0\0*\0"
        assert unpack_attr(data) == TraceAttr(("*",), (), 8)

    @pytest.mark.parametrize("cut", range(1, 38))
    def test_a_part_of_it_is_refused(self, cut: int) -> None:
        data = TraceAttr(("a:b",), (1,), 8, ("x*",), ("z",)).pack()
        with pytest.raises(ValueError, match=r"short|size|disagree|end|events|globs"):
            unpack_attr(data[:-cut])

    def test_too_many_globs(self) -> None:
        with pytest.raises(ValueError, match="too many"):
            unpack_attr(TraceAttr(("*",), (), 1, ("x",) * (MAX_GLOBS + 1)).pack())

    def test_a_glob_that_no_name_can_be_as_long_as(self) -> None:
        """Each is made a regular expression of, while everybody waits."""
        with pytest.raises(ValueError, match="too long"):
            unpack_attr(TraceAttr(("*a" * MAX_GLOB_BYTES,)).pack())
        with pytest.raises(ValueError, match="too long"):
            unpack_attr(TraceAttr(("*",), (), 1, (), ("x" * (MAX_GLOB_BYTES + 1),)).pack())


def test_who_calls_a_function_that_is_wrapped(world: TracedWorld, program: Program) -> None:
    program.mmap(1, at=BASE)
    with functions(world, ["exc_page_fault", "handle_mm_fault"], events=("ftrace:function",)) as trace:
        program.store(BASE, b"x")
        parents = {record.fields["func"]: record.fields["parent"] for record in trace.records()}
    assert parents == {"exc_page_fault": "_translate", "handle_mm_fault": "do_user_addr_fault"}


def test_a_function_that_a_trace_has_wrapped_has_its_name(world: TracedWorld) -> None:
    """Two people look at one machine: one at events, the other at the functions that these hang on."""
    before = set(available_filter_functions())
    with world.trace("*", "machine:*", "kmem:*"):
        assert set(available_filter_functions()) == before
    assert {b"exc_page_fault", b"Pages.set_pte", b"run"} <= before


def test_globs_that_have_been_asked_for_are_not_kept(world: TracedWorld) -> None:
    """Anybody may ask for any, and again for others."""
    user = world.attach(USER)
    cache: Any = vars(fnmatch)["_compile_pattern"]
    cache.cache_clear()
    for number in range(3):
        data = TraceAttr((f"no*such{number}",), (), 1, (f"no*such{number}",)).pack()
        assert user.call(Nr.PERF_EVENT_OPEN, 0, data=data) == -errno.EINVAL
    assert cache.cache_info().currsize == 0


def test_the_first_look_for_functions_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them took 180 ms in one turn; later they are known."""
    monkeypatch.setattr(ftrace, "_names", {})
    pieces = sum(1 for _ in check_globs(("*",)))
    assert pieces >= len(set(available_filter_functions())) // 64
    assert sum(1 for _ in check_globs(("*",))) == 1


def test_the_writing_of_records_is_not_looked_at(
    world: TracedWorld, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a full ring has no room for took long: the hook was called for each call of the tracing itself."""
    hooks: list[object] = []
    write = Ring.write

    def watched(ring: Ring, chunks: list[bytes]) -> None:
        hooks.append(sys.getprofile())
        write(ring, chunks)

    monkeypatch.setattr(Ring, "write", watched)
    former = sys.getprofile()
    with functions(world, ["sys_getpid"], data_pages=1) as trace:
        for _ in range(40):
            program.call(Nr.GETPID)
        assert sys.getprofile() is not former
        assert trace.reader.lost or list(trace.reader.read())
    assert len(hooks) >= 40
    assert set(hooks) == {None}
    assert sys.getprofile() is former


def test_the_more_traces_hear_of_each_function_the_smaller_are_the_steps(
    world: TracedWorld, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fork of 64 huge pages with sixteen traces took 220 ms in one step."""
    steps = 0
    copy = fork.copy_page_range

    def counted(*args: Any) -> None:
        nonlocal steps
        steps += 1
        copy(*args)

    monkeypatch.setattr(fork, "copy_page_range", counted)
    program.mmap(64 * 512, flags=ANON | Map.NORESERVE.value, at=BASE)
    for number in range(64):
        program.store(BASE + number * PMD_SIZE, b"x")
    found = []
    with ExitStack() as traces:
        for wanted in (0, 1, 4, 16):
            while len(world.tracing._traces) < wanted:
                traces.enter_context(functions(world, data_pages=1))
            steps = 0
            program.call(Nr.CLONE)
            found.append(steps)
    assert found == [found[0], found[0], 4 * found[0], 16 * found[0]]
