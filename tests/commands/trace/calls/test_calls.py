"""Lines of strace: values and arguments from numbers, whole lines from what a real kernel tells."""

from __future__ import annotations

import errno
import signal
from collections.abc import Callable
from typing import Any

import click
import pytest

from kerneld.commands.trace.calls.arguments import MACHINE, call_text, parse_trace, result_text
from kerneld.commands.trace.calls.printer import Printer, Style, Tally
from kerneld.commands.trace.calls.summary import summary
from kerneld.commands.trace.calls.values import quoted
from shared.uapi.mman import Map
from shared.uapi.page import PAGE_SIZE
from shared.uapi.signals import Disposition
from shared.uapi.syscalls import Nr
from tests.support.programs import ANON, BASE, EXEC, RW, Program
from tests.support.traced import TracedWorld

U64 = (1 << 64) - 1
EVERY = parse_trace("all")
GLOBS = ("raw_syscalls:*", "signal:*", "sched:*", "machine:*")


@pytest.mark.parametrize(
    ("nr", "args", "text"),
    [
        (
            Nr.MMAP,
            (0, 8192, 3, 0x22, U64, 0),
            "mmap(NULL, 8192, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0)",
        ),
        (Nr.MMAP, (BASE, 1, 0, 0x11, 3, 4096), f"mmap({BASE:#x}, 1, PROT_NONE, MAP_SHARED|MAP_FIXED, 3, 0x1000)"),
        (Nr.MMAP, (0, 1, 4, 0x62, 3, 0), "mmap(NULL, 1, PROT_EXEC, MAP_PRIVATE|MAP_ANONYMOUS|MAP_32BIT, 3, 0)"),
        (
            Nr.MMAP,
            (0, 1, 0, 0x5404_0002, 0, 0),
            "mmap(NULL, 1, PROT_NONE, MAP_PRIVATE|MAP_HUGETLB|21<<MAP_HUGE_SHIFT, 0, 0)",
        ),
        (Nr.MMAP, (0, 1, 0x40, 0x200, 0, 0), "mmap(NULL, 1, 0x40 /* PROT_??? */, 0|0x200, 0, 0)"),
        (Nr.MPROTECT, (BASE, 4096, 0x43), f"mprotect({BASE:#x}, 4096, PROT_READ|PROT_WRITE|0x40)"),
        (Nr.PKEY_MPROTECT, (BASE, 1, 1, U64), f"pkey_mprotect({BASE:#x}, 1, PROT_READ, -1)"),
        (Nr.PKEY_ALLOC, (0, 3), "pkey_alloc(0, PKEY_DISABLE_ACCESS|PKEY_DISABLE_WRITE)"),
        (Nr.PKEY_ALLOC, (1, 4), "pkey_alloc(0x1, 0x4 /* PKEY_??? */)"),
        (Nr.PKEY_FREE, (5,), "pkey_free(5)"),
        (Nr.WRPKRU, (0x5555_5554,), "wrpkru(0x55555554)"),
        (Nr.RDPKRU, (), "rdpkru()"),
        (Nr.MUNMAP, (BASE, U64), f"munmap({BASE:#x}, {U64})"),
        (Nr.BRK, (0,), "brk(NULL)"),
        (Nr.RT_SIGACTION, (11, Disposition.IGNORE), "rt_sigaction(SIGSEGV, SIG_IGN)"),
        (Nr.MREMAP, (BASE, 4096, 8192, 1, 77), f"mremap({BASE:#x}, 4096, 8192, MREMAP_MAYMOVE)"),
        (Nr.MREMAP, (BASE, 1, 2, 3, BASE), f"mremap({BASE:#x}, 1, 2, MREMAP_MAYMOVE|MREMAP_FIXED, {BASE:#x})"),
        (Nr.MADVISE, (BASE, 1, 4), f"madvise({BASE:#x}, 1, MADV_DONTNEED)"),
        (Nr.MADVISE, (BASE, 1, 99), f"madvise({BASE:#x}, 1, 0x63 /* MADV_??? */)"),
        (Nr.MSYNC, (BASE, 1, 4), f"msync({BASE:#x}, 1, MS_SYNC)"),
        (Nr.MLOCKALL, (3,), "mlockall(MCL_CURRENT|MCL_FUTURE)"),
        (Nr.MLOCK2, (BASE, 1, 1), f"mlock2({BASE:#x}, 1, MLOCK_ONFAULT)"),
        (Nr.PRLIMIT64, (0, 3, 0, 16), "prlimit64(0, RLIMIT_STACK, NULL, 0x10)"),
        (Nr.PROCESS_VM_READV, (7, 16, 1, 32, 2, 0), "process_vm_readv(7, 0x10, 1, 0x20, 2, 0)"),
        (Nr.GETPID, (), "getpid()"),
        (Nr.SHADOWPT_OPEN, (7, 16, 0, 1), "shadowpt_open(7, 0x10, LAYOUT_F24, OPEN_HOST)"),
        (Nr.SHADOWPT_PAGE_CONTENTS, (37, 16), "shadowpt_page_contents(0x25, 0x10)"),
        (Nr.PROCREAD, (0, 65536), "procread(0, 65536)"),
        (Nr.TOUCH, (BASE, 4096, 1), f"touch({BASE:#x}, 4096, WRITE)"),
        (500, (1, 0, 16), "syscall_0x1f4(0x1, 0, 0x10, 0, 0, 0)"),
    ],
)  # fmt: skip
def test_arguments(nr: int, args: tuple[int, ...], text: str) -> None:
    assert call_text(nr, [*args, *[0] * (6 - len(args))]) == text


def test_every_call_has_its_arguments() -> None:
    for nr in Nr:
        assert call_text(nr, [0] * 6).count("0, 0, 0, 0, 0") == 0, nr


@pytest.mark.parametrize(
    ("nr", "ret", "text"),
    [
        (Nr.MMAP, 0x7FFF_F7FF_5000, "0x7ffff7ff5000"),
        (Nr.MMAP, -errno.ENOMEM, "-1 ENOMEM (Cannot allocate memory)"),
        (Nr.MUNMAP, -errno.EOPNOTSUPP, "-1 EOPNOTSUPP (Operation not supported)"),
        (Nr.MUNMAP, -errno.EAGAIN, "-1 EAGAIN (Resource temporarily unavailable)"),
        (Nr.GETPID, 4242, "4242"),
        (Nr.BRK, 0x1000, "0x1000"),
        (Nr.EXIT_GROUP, 0, "?"),
    ],
)
def test_results(nr: int, ret: int, text: str) -> None:
    assert result_text(nr, ret) == text


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("trace=mmap,munmap", {Nr.MMAP, Nr.MUNMAP}),
        ("brk", {Nr.BRK}),
        ("!memory", EVERY - parse_trace("%memory")),
        ("all", set(Nr) - MACHINE),
        ("all,machine", set(Nr)),
        ("trace=none", set()),
    ],
)
def test_choice_of_calls(text: str, calls: set[int]) -> None:
    assert parse_trace(text) == calls


def test_a_call_that_is_none_is_wrong_usage() -> None:
    with pytest.raises(click.BadParameter, match="nonsense"):
        parse_trace("trace=mmap,nonsense")


def lines_of(world: TracedWorld, printer: Printer, act: Callable[[], Any]) -> list[str]:
    """Return what is printed of what happens while `act` runs."""
    with world.trace(*GLOBS) as trace:
        records = trace.during(act)
    return [line for record in records for line in printer.lines(record)]


def test_a_call_stands_on_a_line_with_its_result(world: TracedWorld, program: Program) -> None:
    def act() -> None:
        program.call(Nr.MMAP, BASE, 2 * PAGE_SIZE, RW, ANON | Map.FIXED, U64, 0)
        program.call(Nr.MPROTECT, BASE + 1, PAGE_SIZE, 0)
        program.call(Nr.GETPID)
        world.tracer.call(Nr.GETPID)
        program.store(BASE, b"x")

    assert lines_of(world, Printer({program.pid}, EVERY), act) == [
        "mmap(0x1000000000, 8192, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_FIXED|MAP_ANONYMOUS, -1, 0) = 0x1000000000",
        "mprotect(0x1000000001, 4096, PROT_NONE) = -1 EINVAL (Invalid argument)",
        f"getpid()                                = {program.pid}",
    ]


def test_the_processor_is_shown_to_who_asks(world: TracedWorld, program: Program) -> None:
    def act() -> None:
        program.store(BASE, b"xyz")
        program.load(BASE)

    program.mmap(1, at=BASE)
    assert lines_of(world, Printer({program.pid}, MACHINE), act) == [
        "store(0x1000000000, 3)                  = 3",
        "load(0x1000000000, 1)                   = 1",
    ]


def test_a_fatal_signal(world: TracedWorld, program: Program) -> None:
    printer = Printer({program.pid}, EVERY | MACHINE)
    assert lines_of(world, printer, lambda: program.answer(Nr.STORE, 0, 1, data=b"x")) == [
        "store(NULL, 1)                          = ?",
        "--- SIGSEGV {si_signo=SIGSEGV, si_code=SEGV_MAPERR, si_addr=NULL} ---",
        "+++ killed by SIGSEGV +++",
    ]
    assert printer.pids == set()


def test_a_signal_of_a_protection_key(world: TracedWorld, program: Program) -> None:
    program.mmap(1, EXEC, at=BASE)
    printer = Printer({program.pid}, EVERY)
    assert lines_of(world, printer, lambda: program.answer(Nr.LOAD, BASE + 8, 1)) == [
        "--- SIGSEGV {si_signo=SIGSEGV, si_code=SEGV_PKUERR, si_addr=0x1000000008, si_pkey=1} ---",
        "+++ killed by SIGSEGV +++",
    ]


def test_a_signal_that_is_caught_goes_on(world: TracedWorld, program: Program) -> None:
    program.mmap(1, 0, at=BASE)
    program.call(Nr.RT_SIGACTION, signal.SIGSEGV, Disposition.CAUGHT)
    printer = Printer({program.pid}, EVERY)
    assert lines_of(world, printer, lambda: program.answer(Nr.LOAD, BASE + 8, 1)) == [
        "--- SIGSEGV {si_signo=SIGSEGV, si_code=SEGV_ACCERR, si_addr=0x1000000008} ---",
    ]
    assert printer.pids == {program.pid}


def test_the_end_by_a_call(world: TracedWorld, program: Program) -> None:
    assert lines_of(world, Printer({program.pid}, EVERY), lambda: program.call(Nr.EXIT_GROUP, 259)) == [
        "exit_group(259)                         = ?",
        "+++ exited with 3 +++",
    ]


def test_the_end_by_going_away(world: TracedWorld, program: Program) -> None:
    gone = lines_of(world, Printer({program.pid}, EVERY), lambda: world.kernel.process_died(program.process))
    assert gone == ["+++ exited +++"]


def test_more_than_one_process_has_its_number_before_it(world: TracedWorld, program: Program) -> None:
    printer = Printer({program.pid, world.tracer.pid}, EVERY)
    assert lines_of(world, printer, lambda: program.call(Nr.GETUID)) == [
        f"[pid {program.pid}] getuid()                  = 1000",
    ]


def test_times(world: TracedWorld, program: Program) -> None:
    with world.trace(*GLOBS) as trace:
        begin, end = trace.during(lambda: program.call(Nr.GETPID))
    offset = 1_700_000_000_123_456_789 - begin.time
    lines: dict[Style, str] = {}
    for style in (Style(3, realtime_offset=offset), Style(relative=True), Style(spent=True)):
        printer = Printer({program.pid}, EVERY, style=style)
        lines[style] = next(line for record in (begin, end) for line in printer.lines(record))
    absolute, relative, spent = lines.values()
    assert absolute.startswith("1700000000.123456 getpid() ")
    assert relative.startswith("    0.000000 getpid() ")
    assert spent.endswith(f" <0.{(end.time - begin.time) // 1000:06}>")


def test_relative_times_are_from_line_to_line(world: TracedWorld, program: Program) -> None:
    with world.trace(*GLOBS) as trace:
        records = trace.during(lambda: [program.call(Nr.GETPID) for _ in range(2)])
    later = records[2]._replace(time=records[0].time + 2_000_000_000)
    printer = Printer({program.pid}, EVERY, style=Style(relative=True))
    lines = [line for record in (*records[:2], later, records[3]) for line in printer.lines(record)]
    assert lines[1].startswith("    2.000000 getpid() ")


def test_summary() -> None:
    tallies: dict[int, Tally] = {Nr.GETPID: Tally(4, 0, 3_000_000), Nr.MMAP: Tally(2, 1, 9_000_000)}
    assert list(summary(tallies)) == [
        "% time     seconds  usecs/call     calls    errors syscall",
        "------ ----------- ----------- --------- --------- ----------------",
        " 75.00    0.009000        4500         2         1 mmap",
        " 25.00    0.003000         750         4           getpid",
        "------ ----------- ----------- --------- --------- ----------------",
        "100.00    0.012000        2000         6         1 total",
    ]


def test_summary_of_nothing() -> None:
    assert list(summary({}))[-1].split() == ["0.00", "0.000000", "0", "0", "total"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/bin/true", '"/bin/true"'),
        ("a\x1b[31m", r'"a\33[31m"'),
        ("a\x1b1", r'"a\0331"'),
        ('q" \\ \n\t', r'"q\" \\ \n\t"'),
        ("\u00e9\udcff", r'"\303\251\377"'),
        ("\x01\udcb2", r'"\1\262"'),
    ],
)
def test_a_string_is_quoted_as_strace_quotes_it(text: str, shown: str) -> None:
    assert quoted(text) == shown
