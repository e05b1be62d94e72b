"""The kit on kerneld, where every check passes; on a kernel without the calls; and on kernels that are broken."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kerneld.commands.conformance.kit import Check
from tests.bugs.bug_kernel import running_kernel
from tests.commands.conformance.kit_program import AS_USER, run_kit
from tests.native.inside import why_not_here
from tests.support.compiler import build
from tests.support.effort import EFFORT

# A check has a time limit of its own, and all of them take a minute or two on a machine that others use too.
pytestmark = pytest.mark.timeout(400)
KERNELD = (sys.executable, "-P", "-m", "kerneld")
BROKEN = Path(__file__).with_name("broken_kernel.c")
FEW_OPENS = ("--opens", "500")
NEED_PFNS = {"pte_write_after_read", "pte_cow", "pte_file_cow", "pte_pfn_cleared", "pte_pfns_distinct", "huge_pfns"}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a kerneld with room for the checks."""
    with running_kernel(tmp_path_factory.mktemp("k")) as found:
        yield found


def may_skip(checks: list[Check]) -> set[str]:
    """Return the checks that say in words that they cannot be made here."""
    contents = {check.name for check in checks if check.name.startswith("contents_")}
    return set() if os.geteuid() == 0 and _nr_users() > 1 else AS_USER | NEED_PFNS | contents


def chosen(checks: list[Check], abi: str) -> list[str]:
    """Return the checks to run: all of f24, and some of each kind of the others, which have other numbers and flags.

    `make test-long` runs all.
    """
    of_semester = [check.name for check in checks if abi in check.semesters]
    return of_semester if abi == "f24" or EFFORT > 1 else of_semester[::6]


def _nr_users() -> int:
    """Return the number of users of this user namespace. In one that `unshare -Ur` has made there is root alone."""
    return int(Path("/proc/self/uid_map").read_text().split()[2])


@pytest.mark.parametrize("abi", ["f24", "f25", "f23"])
def test_every_check_passes_by_kerneld_run(
    abi: str, kits: dict[str, Path], checks: list[Check], daemon: dict[str, str]
) -> None:
    command = [*KERNELD, "run", "--abi", abi, "--", str(kits[abi])]
    of_semester = chosen(checks, abi)
    done = run_kit(command, "--abi", abi, "--only", ",".join(of_semester), *FEW_OPENS, environment=daemon)
    # The host decides whether there are huge pages.
    may_be_skipped = may_skip(checks) | {"huge_beside", "huge_pfns", "huge_at_start", "pte_mlock"}
    assert done.failed == set(), done.output
    assert done.passed | done.skipped == set(of_semester)
    assert done.skipped <= may_be_skipped, done.output
    assert done.status == 0


@pytest.mark.skipif(why_not_here() != "", reason=f"no program runs inside: {why_not_here()}")
@pytest.mark.parametrize("abi", ["f24", "f25", "f23"])
def test_every_check_passes_inside_the_machine(
    abi: str, kits: dict[str, Path], checks: list[Check], daemon: dict[str, str]
) -> None:
    command = [*KERNELD, "exec", "--abi", abi, "--", str(kits[abi])]
    of_semester = chosen(checks, abi)
    done = run_kit(command, "--abi", abi, "--only", ",".join(of_semester), *FEW_OPENS, environment=daemon)
    assert done.failed == set(), done.output
    assert done.passed | done.skipped == set(of_semester)
    assert done.skipped <= may_skip(checks), done.output
    assert done.status == 0


@pytest.mark.parametrize("abi", ["f24", "f25", "f23"])
def test_a_kernel_without_the_calls_is_one_line(abi: str, kits: dict[str, Path]) -> None:
    done = run_kit([str(kits[abi])], "--abi", abi)
    assert done.status == 4
    assert done.output.startswith(f"1..0 # SKIP the calls of the shadow page table are missing ({abi}, ")
    assert done.output.count("\n") == 1


@pytest.fixture(scope="session")
def broken_kernel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that plays a kernel: BROKEN=hang, lie or die."""
    return build(tmp_path_factory.mktemp("broken") / "broken.so", [BROKEN], "-shared", "-fPIC")


def on_broken(kernel: Path, how: str, stat: Path | None = None) -> dict[str, str]:
    """Return the environment in which a program meets that kernel; `stat` stands in the place of /proc/stat."""
    return {"LD_PRELOAD": str(kernel), "BROKEN": how} | ({} if stat is None else {"STAT": str(stat)})


def stat_file(directory: Path, running: int) -> Path:
    """Write what /proc/stat says of two processors and of processes that want to run; the reader is one of them."""
    path = directory / f"stat-{running}"
    interrupts = " 0" * 2000
    path.write_text(f"cpu  1 2 3 4\ncpu0 1 2 3 4\ncpu1 1 2 3 4\nintr 9{interrupts}\nprocs_running {running}\n")
    return path


def test_a_call_that_hangs_is_a_failed_check_and_the_next_one_runs(
    tmp_path: Path, kits: dict[str, Path], broken_kernel: Path
) -> None:
    only = ("--only", "vma_mmap,open_works,close_works", "--limit", "1")
    # Two others keep both processors busy, and nobody waits for one: time counts in full.
    kernel = on_broken(broken_kernel, "hang", stat_file(tmp_path, 3))
    done = run_kit([str(kits["f24"])], *only, environment=kernel)
    assert (done.status, done.failed, done.passed) == (
        1,
        frozenset({"vma_mmap"}),
        frozenset({"open_works", "close_works"}),
    )
    assert "s, in which it could have run for 1 s: a call hangs, or never ends" in done.output


def test_a_check_that_waits_for_a_processor_does_not_hang(
    tmp_path: Path, kits: dict[str, Path], broken_kernel: Path
) -> None:
    kernel = on_broken(broken_kernel, "slow", stat_file(tmp_path, 1_000_001))
    done = run_kit([str(kits["f24"])], "--only", "close_while_tracking", "--limit", "1", environment=kernel)
    assert done.passed == {"close_while_tracking"}, done.output


@pytest.mark.parametrize("text", ["", "cpu  1 2 3 4\n"])
def test_a_machine_that_does_not_say_how_busy_it_is_gets_a_line_of_words(
    tmp_path: Path, kits: dict[str, Path], broken_kernel: Path, text: str
) -> None:
    stat = tmp_path / "stat"
    stat.write_text(text)
    only = ("--only", "vma_mmap", "--limit", "1")
    done = run_kit([str(kits["f24"])], *only, environment=on_broken(broken_kernel, "hang", stat))
    assert "# /proc/stat does not tell how busy this machine is" in done.output
    assert done.failed == {"vma_mmap"}


def test_a_check_that_dies_is_a_failed_check(kits: dict[str, Path], broken_kernel: Path) -> None:
    done = run_kit([str(kits["f24"])], "--only", "vma_mmap,open_works", environment=on_broken(broken_kernel, "die"))
    assert (done.status, done.failed, done.passed) == (1, frozenset({"vma_mmap"}), frozenset({"open_works"}))
    assert "the check's process died of signal 11" in done.output


def test_a_kernel_that_only_says_yes_passes_no_check_of_the_table(
    kits: dict[str, Path], checks: list[Check], broken_kernel: Path
) -> None:
    names = [check.name for check in checks if check.name.startswith(("vma_", "pte_", "start_fills", "start_resets"))]
    only = ("--only", ",".join(names), "--patience", "1")
    done = run_kit([str(kits["f24"])], *only, environment=on_broken(broken_kernel, "lie"))
    assert done.passed == set(), done.output
    assert done.failed
    # Three lines tell of each failure.
    lines = done.output.splitlines()
    for at, line in enumerate(lines):
        if line.startswith("not ok"):
            assert [words.split(":")[0] for words in lines[at + 1 : at + 4]] == [
                "#   did",
                "#   expected",
                "#   usual mistake",
            ]


def test_the_log_tells_which_check_stopped_the_kernel(
    tmp_path: Path, kits: dict[str, Path], broken_kernel: Path
) -> None:
    log = tmp_path / "log"
    kernel = on_broken(broken_kernel, "lie")
    log.write_text("boot of-another-boot\nbegin open_works\nend open_works\nbegin open_ebusy_self\n")
    done = run_kit([str(kits["f24"])], "--limit", "1", "--patience", "1", environment=kernel, log=log)
    assert "open_ebusy_self" in done.failed
    assert "saw: the kernel stopped during this check" in done.output
    assert done.output.count("the kernel stopped during this check") == 1
    assert log.read_text().splitlines()[-1] == "done all"


def test_a_run_that_was_interrupted_in_this_boot_blames_no_check(
    tmp_path: Path, kits: dict[str, Path], broken_kernel: Path
) -> None:
    log = tmp_path / "log"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    log.write_text(f"boot {boot}\nbegin open_works\n")
    only = ("--only", "open_works,close_works")
    done = run_kit([str(kits["f24"])], *only, environment=on_broken(broken_kernel, "lie"), log=log)
    assert "the kernel stopped" not in done.output
