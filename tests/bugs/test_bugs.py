"""Kernels with a planted mistake: the catalogue, and for some of each kind the checks that find it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from kerneld.bugs.catalogue import BUGS
from kerneld.bugs.plant_bug import known_plants
from kerneld.commands.conformance.kit import read_checks
from tests.bugs.bug_kernel import run_on_bug
from tests.commands.conformance.kit_program import AS_USER
from tests.support import daemons
from tests.support.rights import can_become_others

pytestmark = pytest.mark.timeout(400)
QUICK = (
    "open-anyone",
    "truncate-silently",
    "entries-first-page",
    "close-child",
    "exit-call-only",
    "start-keeps-frames",
    "stop-vmas-only",
    "no-partial-munmap",
    "no-fork-cow",
    "present-bit",
    "huge-head",
    "lost-update",
    "contents-stale",
)
"""Mistakes of every kind. `make bugs` tries all of them with all checks."""


def possible(checks: Iterable[str]) -> list[str]:
    """Return the checks that can be made here, where root may have no other user to become."""
    return [check for check in checks if can_become_others() or check not in AS_USER]


def test_the_catalogue_has_every_plant() -> None:
    assert set(BUGS) == set(known_plants())
    assert len(BUGS) >= 40


def test_the_catalogue_names_checks_of_the_kit(kit: Path) -> None:
    assert kit.exists()
    known = {check.name for check in read_checks()}
    for name, bug in BUGS.items():
        assert bug.words, name
        assert bug.checks, name
        assert set(bug.checks) <= known, name


@pytest.mark.parametrize("name", QUICK)
def test_a_mistake_is_found_by_its_checks(kit: Path, tmp_path: Path, name: str) -> None:
    checks = possible(BUGS[name].checks)
    if not checks:
        pytest.skip("its checks become another user, and there is none in this user namespace")
    run = run_on_bug(kit, tmp_path, name, checks, ("--patience", "300", "--limit", "60"))
    assert run.failed == set(checks), run.output
    # These checks see what is wrong; none of them hangs.
    assert "nothing for" not in run.output


def test_the_right_kernel_passes_the_same_checks(kit: Path, tmp_path: Path) -> None:
    checks = sorted({check for name in QUICK for check in BUGS[name].checks})
    run = run_on_bug(kit, tmp_path, None, checks)
    assert run.failed == set(), run.output
    assert run.passed == set(possible(checks))
    assert run.passed | run.skipped == set(checks)


def test_the_list_names_every_mistake_and_explains_on_demand(tmp_path: Path) -> None:
    names = daemons.kerneld(tmp_path, "start", "--bug", "list").stdout
    assert names.splitlines() == list(BUGS)
    explained = daemons.kerneld(tmp_path, "start", "--bug", "list", "--explain").stdout
    for bug in BUGS.values():
        assert bug.words in explained


def test_a_mistake_that_does_not_exist_is_wrong_usage(tmp_path: Path) -> None:
    done = daemons.kerneld(tmp_path, "start", "--bug", "no-such")
    assert done.returncode == 2
    assert "there is no mistake 'no-such'" in done.stderr
    assert daemons.kerneld(tmp_path, "start", "--explain").returncode == 2
