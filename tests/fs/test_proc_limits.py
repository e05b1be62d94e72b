"""/proc/PID/limits and /proc/swaps: in the host's own form."""

from __future__ import annotations

from pathlib import Path

from shared.uapi.resource import RLIM_INFINITY, Rlimit
from tests.fs.world import World


def test_limits_have_the_hosts_lines(world: World) -> None:
    limits = world.me.rlimits
    limits.soft[Rlimit.AS], limits.hard[Rlimit.AS] = 4096, RLIM_INFINITY
    ours, hosts = (text.splitlines() for text in (world.text("self/limits"), Path("/proc/self/limits").read_text()))
    assert [line[:26] for line in ours] == [line[:26] for line in hosts]
    assert [line[68:] for line in ours] == [line[68:] for line in hosts]
    assert "Max address space         4096                 unlimited            bytes     " in ours
    assert "Max stack size            8388608              unlimited            bytes     " in ours


def test_no_swap_is_a_line_of_names(world: World) -> None:
    assert world.text("swaps") == Path("/proc/swaps").read_text().splitlines(keepends=True)[0]
