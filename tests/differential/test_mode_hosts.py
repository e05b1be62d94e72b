"""What a mode of the referee asks of the host, and does to it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kerneld.fs.inotify import Inotify
from kerneld.mm.limits import TransparentHugepage
from kerneld.referee import facts as facts_module
from kerneld.referee import mode as mode_module
from kerneld.referee.errors import HostError, RunnerDiedError
from kerneld.referee.match import open_match
from kerneld.referee.mode import Mode, thp_of
from kerneld.referee.program import At, Op, to_json
from kerneld.referee.programs import make_program
from kerneld.referee.swap_lock import SWAPS, shared_swap
from shared.uapi.mman import Madv


def test_each_mode_has_programs_of_its_own() -> None:
    made = {mode: [make_program(mode, f"own-{number}", 30) for number in range(20)] for mode in Mode}
    assert all(len({to_json(program) for program in programs}) == 20 for programs in made.values())
    assert made[Mode.HUGE] != made[Mode.PLAIN] != made[Mode.SWAP]


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"enabled": "always madvise [never]"}, "gives nobody huge pages"),
        ({}, "gives nobody huge pages"),
        ({"enabled": "always [madvise] never", "use_zero_page": "0"}, "no huge zero page"),
        (
            {
                "enabled": "[always] madvise never",
                "use_zero_page": "1",
                "hugepages-64kB/enabled": "always inherit [madvise] never",
            },
            "other sizes than 2 MiB too: hugepages-64kB",
        ),
    ],
)
def test_hosts_without_the_huge_mode(
    knobs: dict[str, str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mode_module, "_THP", write_knobs(tmp_path, knobs))
    with pytest.raises(HostError, match=says):
        thp_of(Mode.HUGE)
    assert thp_of(Mode.PLAIN) is TransparentHugepage.NEVER


def test_the_huge_mode_goes_by_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    knobs = {
        "enabled": "[always] madvise never",
        "use_zero_page": "1",
        "hugepages-2048kB/enabled": "always [inherit] madvise never",
        "hugepages-8kB/shmem_enabled": "always inherit [never]",
        "hugepages-16kB/enabled": "always inherit madvise [never]",
    }
    monkeypatch.setattr(mode_module, "_THP", write_knobs(tmp_path, knobs))
    assert thp_of(Mode.HUGE) is TransparentHugepage.ALWAYS


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="this host has no huge pages")
def test_khugepaged_does_not_pass_over_its_decoy() -> None:
    """It passes over a mapping that never had a page: mm/huge_memory.c:hugepage_vma_check(), `!vma->anon_vma`."""
    command = [sys.executable, "-m", "kerneld.referee.khugepaged"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as keeper:
        assert keeper.stdin is not None
        assert keeper.stdout is not None
        assert keeper.stdout.readline() == "ready\n"
        mappings = Path(f"/proc/{keeper.pid}/smaps").read_text().split("VmFlags:")
        keeper.stdin.close()
    numbers = next(text for text in mappings if f"Size:           {64 << 20} kB" in text)
    assert int(numbers.split("Anonymous:")[1].split()[0]) > 0


def write_knobs(folder: Path, knobs: dict[str, str]) -> Path:
    for name, text in knobs.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text + "\n")
    return folder


def test_on_a_host_with_swap_of_its_own_nothing_is_paged_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts_module, "host_has_swap", lambda: True)
    region = Op(0, "mmap", (At(-1), 8192, 3, 0x22, 0), slot=0)
    program = (region, Op(0, "store", (At(0), 8), data=b"\xf5"), Op(0, "madvise", (At(0), 8192, Madv.PAGEOUT.value)))
    try:
        with open_match() as both:
            assert "MADV_PAGEOUT is passed over" in both.describe()
            assert both.play(program) is None
    except RunnerDiedError:
        raise
    except HostError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("signo", [signal.SIGKILL, signal.SIGINT])
def test_the_swap_file_goes_however_the_run_ends(signo: signal.Signals, tmp_path: Path) -> None:
    """With it go the knobs that were turned for it: they are as they were before its lock is free again."""
    knobs = [Path("/sys/module/zswap/parameters/enabled"), Path("/proc/sys/vm/page-cluster")]
    before = [SWAPS.read_text(), *(knob.read_text() for knob in knobs if knob.exists())]
    running = subprocess.Popen(
        [sys.executable, "-m", "kerneld", "referee", "--mode", "swap", "--programs", "1000000"],
        env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with running:
        assert running.stdout is not None
        assert running.stderr is not None
        if not any(line.startswith("The referee is") for line in running.stdout):
            pytest.skip(running.stderr.read().strip())
        assert str(tmp_path) in SWAPS.read_text()
        os.killpg(running.pid, signo)
        running.communicate()
    with shared_swap():
        assert [SWAPS.read_text(), *(knob.read_text() for knob in knobs if knob.exists())] == before
    assert list(tmp_path.rglob("swap")) == []


def test_a_host_that_tells_nothing_of_truncation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where others have all inotify instances, every program that cuts a file would differ."""
    monkeypatch.setattr(Inotify, "__init__", lambda inotify: setattr(inotify, "fd", -1))
    with pytest.raises(HostError, match="max_user_instances"), open_match():
        pass
