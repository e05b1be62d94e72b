"""userfaultfd in the referee's programs."""

from __future__ import annotations

import errno
from collections import Counter
from signal import SIGBUS

import pytest

from kerneld.referee.difference import following
from kerneld.referee.known import KNOWN
from kerneld.referee.match import Match
from kerneld.referee.mode import Mode
from kerneld.referee.outcome import State
from kerneld.referee.program import MAX_PROCESSES, At, Op
from kerneld.referee.programs import make_program
from kerneld.referee.simulated import Simulated
from kerneld.referee.userfaultfds import CALLS
from shared.uapi.mman import Map
from shared.uapi.page import PAGE_SIZE
from tests.differential.alone import states
from tests.differential.noting_host import NotingHost

ANON = (Map.PRIVATE | Map.ANONYMOUS | Map.FIXED).value
MADE = Op(0, "mmap", (At(0), 4 * PAGE_SIZE, 3, ANON, 0))
WATCHED = Op(0, "uffdio_register", (At(0), 2 * PAGE_SIZE, 1))


def watched(state: State, who: int = 0) -> list[bool]:
    return ["um" in mapping.flags for mapping in state.views[who].mappings]


def test_an_access_to_a_missing_page_ends_in_sigbus(ours: Simulated) -> None:
    page = At(0, PAGE_SIZE)
    registered, missing, given, told, read, zero, again, gone, free = states(
        ours, MADE, WATCHED, Op(0, "load", (page, 1)), Op(0, "store", (At(0, 3 * PAGE_SIZE), 1), data=b"\xf5"),
        Op(0, "uffdio_copy", (page, PAGE_SIZE, At(0, 3 * PAGE_SIZE), 0)), Op(0, "load", (page, 1)),
        Op(0, "uffdio_zeropage", (At(0), PAGE_SIZE, 0)), Op(0, "uffdio_zeropage", (At(0), PAGE_SIZE, 0)),
        Op(0, "uffdio_unregister", (At(0), 4 * PAGE_SIZE)), Op(0, "load", (At(0, 2 * PAGE_SIZE), 1)),
    )[1:]  # fmt: skip
    assert (registered.outcome.ret, watched(registered)) == (0, [True, False])
    assert (missing.outcome.signo, given.outcome.ret) == (SIGBUS, 1)
    assert (told.outcome.ret, told.outcome.data) == (0, PAGE_SIZE.to_bytes(8, "little"))
    assert (read.outcome.data, zero.outcome.ret) == (b"\xf5", 0)
    assert (again.outcome.ret, again.outcome.data) == (
        -errno.EEXIST,
        (-errno.EEXIST).to_bytes(8, "little", signed=True),
    )
    assert (gone.outcome.ret, any(watched(gone)), free.outcome.data) == (0, False, b"\0")


def test_a_child_has_one_of_its_own(ours: Simulated) -> None:
    _, _, _, child, parent = states(
        ours, MADE, WATCHED, Op(0, "fork", (1,)), WATCHED._replace(who=1, args=(At(0), PAGE_SIZE, 1)),
        Op(0, "uffdio_unregister", (At(0), PAGE_SIZE)),
    )  # fmt: skip
    assert (child.outcome.ret, watched(child), watched(child, 1)) == (0, [True, False], [True, False, False])
    assert (parent.outcome.ret, watched(parent, 1)) == (0, [True, False, False])


def test_nothing_outlives_a_program(ours: Simulated) -> None:
    (_, state) = states(ours, MADE, WATCHED)
    assert watched(state) == [True, False]
    assert not ours.kernel.userfaultfds._open
    assert not ours.kernel.userfaultfds.releasing


def test_programs_watch_and_give(ours: Simulated) -> None:
    done: Counter[str] = Counter()
    for number in range(60):
        program = tuple(op for op in make_program(Mode.PLAIN, f"watched-{number}", 60) if op.name in {*CALLS, "mmap"})
        results = states(ours, *program)
        done.update(op.name for op, state in zip(program, results, strict=True) if state.outcome.ret >= 0)
    assert done.keys() >= CALLS, done


@pytest.mark.parametrize("has_userfaultfd", [True, False])
def test_a_host_without_userfaultfd_passes_over_them(match: Match, has_userfaultfd: bool) -> None:
    host = NotingHost(match, has_userfaultfd=has_userfaultfd)
    asked = Match(match.ours, host, ())  # type: ignore[arg-type]
    asked.expect((WATCHED, Op(0, "munmap", (0, 4096))))
    assert [op.who for op in host.expected] == [0 if has_userfaultfd else MAX_PROCESSES, 0]
    assert ("userfaultfd" in asked.describe()) is not has_userfaultfd


def test_the_rule_for_a_source_is_for_no_destination(ours: Simulated) -> None:
    """Before v6.6 UFFDIO_COPY copies from anywhere, but not to a part of a page."""
    nowhere = 1 << 60
    with following([known for known in KNOWN if known.source == "fs/userfaultfd.c:userfaultfd_copy()"]):
        _, *played = states(
            ours, MADE, Op(0, "uffdio_copy", (At(1), PAGE_SIZE, nowhere, 0)),
            Op(0, "uffdio_copy", (At(1), PAGE_SIZE // 2, At(0), 0)),
            Op(0, "uffdio_copy", (nowhere, PAGE_SIZE, At(0), 0)), Op(0, "uffdio_zeropage", (At(1), PAGE_SIZE // 2, 0)),
        )  # fmt: skip
    assert [-state.outcome.ret for state in played] == [errno.ENOENT, errno.EINVAL, errno.EINVAL, errno.EINVAL]
