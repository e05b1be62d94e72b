"""What the host reads and writes of a program's memory: whatever happens to the pages meanwhile, as outside."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.native.inside import Inside
from tests.support.client import Nursery
from tests.support.watched_daemon import Daemon


class SmallDaemon(Daemon):
    """A kerneld whose RAM is smaller than the buffers."""

    options = ("--ram", "8M", "--swap", "40M")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Inside]:
    """A small machine of this test's own."""
    nursery = Nursery()
    daemon = SmallDaemon(tmp_path, nursery, check_invariants=False)
    inside = Inside(daemon.environment)
    yield inside
    inside.close()
    daemon.close()
    nursery.close()


def test_a_call_waits_while_its_buffers_are_swapped_out(inside: Inside, programs: dict[str, Path]) -> None:
    end = inside.agrees([str(programs["blocked"])])
    assert end.status == 0
    assert end.output.count("\n") == 20


def test_semaphores_and_messages(inside: Inside, programs: dict[str, Path]) -> None:
    """What semctl, msgrcv, mq_notify and adjtimex read and write; a signal ends the waits of semop and msgrcv."""
    end = inside.agrees([str(programs["ipc"])])
    assert end.status == 0
    assert end.output.count("ended by a signal: 1") == 2


def test_outputs_of_clone_and_prctl_and_calls_with_much(inside: Inside, programs: dict[str, Path]) -> None:
    output = inside.agrees([str(programs["outputs"])]).output
    assert "clone: 20 told, 20 ended" in output
    assert "written: 37748736 37748736" in output


def test_bad_buffers_large_buffers_and_what_is_written_of_them(
    inside: Inside, programs: dict[str, Path], tmp_path: Path
) -> None:
    assert "pages 2\n" in inside.agrees([str(programs["buffers"])], directory=tmp_path).output


def test_buffers_that_are_larger_than_the_ram(small: Inside, programs: dict[str, Path], tmp_path: Path) -> None:
    end = small.run([str(programs["buffers"])], directory=tmp_path)
    outside = small.outside([str(programs["buffers"])], directory=tmp_path)
    assert end.output.splitlines()[:7] == outside.output.splitlines()[:7]
    assert end.status == 0


def test_pages_that_are_given_to_a_pipe(inside: Inside, programs: dict[str, Path]) -> None:
    output = inside.agrees([str(programs["vmsplice"])]).output
    assert "more than there is room for: 65536" in output
    assert "a bad piece behind a good one: 10" in output
