"""The list of known differences: what people read is what the referee goes by, and it goes with the referee.

Each witness is played here on kerneld itself, where no host is needed: by its own rules, and by the difference's.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kerneld.mm.calls import mremap
from kerneld.mm.fault import fault
from kerneld.mm.files.filemap import AddressSpace
from kerneld.mm.limits import TransparentHugepage
from kerneld.referee import difference as mechanism
from kerneld.referee.difference import Known, OnTop, decide, following
from kerneld.referee.errors import HostError
from kerneld.referee.execute import play
from kerneld.referee.known import KNOWN
from kerneld.referee.known_modes import KNOWN_OF_MODES
from kerneld.referee.mode import Mode
from kerneld.referee.program import Op
from kerneld.referee.simulated import Simulated
from kerneld.referee.witness import Stage
from tests.differential.alone import LAYOUT, facts

FIDELITY = Path(__file__).parents[2] / "docs" / "fidelity.md"


NEEDS_KEYS = {"takes_a_key_before_a_place": True, "has_no_key_to_give": False}
NEEDS_NO_HUGE_PAGES = "collapses_nothing"


def row(difference: Known) -> str:
    since = f"v{difference.since[0]}.{difference.since[1]}" if difference.since > (0, 0) else "–"
    if difference.before is not None:
        since = f"before v{difference.before[0]}.{difference.before[1]}"
    return f"| {since} | {difference.source} | {difference.what} |"


def test_the_document_has_each_and_no_other() -> None:
    lines = FIDELITY.read_text().splitlines()
    start = lines.index("| since | source | what |") + 2
    assert lines[start : start + len(KNOWN)] == [row(difference) for difference in KNOWN]
    assert not lines[start + len(KNOWN)]


@pytest.fixture(scope="module", params=[True, False], ids=["pku", "no-pku"])
def stage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    ours = Simulated(tmp_path_factory.mktemp("files"), facts(), pku=request.param)
    yield stage_of(ours)
    ours.close()


@pytest.fixture(scope="module")
def always_huge_stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    everywhere = facts()._replace(mode=Mode.HUGE, thp=TransparentHugepage.ALWAYS)
    ours = Simulated(tmp_path_factory.mktemp("always"), everywhere)
    yield stage_of(ours)
    ours.close()


@pytest.fixture(scope="module")
def swap_stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    ours = Simulated(tmp_path_factory.mktemp("swap"), facts(Mode.SWAP))
    yield stage_of(ours)
    ours.close()


@pytest.fixture(scope="module")
def huge_stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    try:
        ours = Simulated(tmp_path_factory.mktemp("huge"), facts(Mode.HUGE))
    except HostError as error:
        pytest.skip(str(error))
    yield stage_of(ours)
    ours.close()


def stage_of(ours: Simulated) -> Stage:
    return Stage(lambda program: play(ours, LAYOUT, program))


WITNESSED = [known for known in KNOWN if known.witness is not None and known.rules and known.mode is None]


@pytest.mark.parametrize("difference", WITNESSED, ids=lambda difference: difference.witness.__name__)
def test_a_witness_tells_kerneld_with_the_rule_from_kerneld_without(stage: Stage, difference: Known) -> None:
    assert difference.witness is not None
    assert not difference.witness(stage)
    has_keys = stage.play(Op(0, "pkey_alloc", (0, 0))).rets[0] > 0
    with following([difference]):
        # What only a processor with protection keys shows, or only one without, the other does not.
        assert difference.witness(stage) == (NEEDS_KEYS.get(difference.witness.__name__, has_keys) == has_keys)
    assert not difference.witness(stage)


@pytest.mark.parametrize("mode", ["swap_stage", "always_huge_stage"])
@pytest.mark.parametrize("difference", WITNESSED, ids=lambda difference: difference.witness.__name__)
def test_no_mode_misleads_a_witness(request: pytest.FixtureRequest, mode: str, difference: Known) -> None:
    stage: Stage = request.getfixturevalue(mode)
    assert difference.witness is not None
    assert not difference.witness(stage)
    needs_none = mode == "always_huge_stage" and difference.witness.__name__ == NEEDS_NO_HUGE_PAGES
    if difference.witness.__name__ not in NEEDS_KEYS and not needs_none:
        with following([difference]):
            assert difference.witness(stage)


@pytest.mark.parametrize("difference", KNOWN_OF_MODES, ids=lambda difference: difference.witness.__name__)
def test_a_witness_of_a_mode_does_so_in_its_mode(request: pytest.FixtureRequest, difference: Known) -> None:
    stage: Stage = request.getfixturevalue(f"{difference.mode}_stage")
    assert difference.witness is not None
    assert not difference.witness(stage)
    with following([difference]):
        assert difference.witness(stage)
    assert not difference.witness(stage)


def test_a_difference_of_a_mode_is_followed_in_it_alone(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mechanism, "_decided", {})
    differences = (Known((6, 12), "", "", witness=lambda _: True, mode=Mode.HUGE),)
    at_hosts = [facts()._replace(mode=mode) for mode in Mode]
    followed = [decide(differences, stage, host) for host in at_hosts]
    assert followed == [differences if mode is Mode.HUGE else () for mode in Mode]


def test_witnesses_decide_and_not_the_release(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    differences = (
        Known((6, 99), "yes", "", witness=lambda _: True),
        Known((0, 0), "no", "", witness=lambda _: False),
        Known((6, 16), "by release", ""),
        Known((6, 18), "too new", ""),
        Known((0, 0), "old", "", before=(6, 8)),
        Known((0, 0), "not built so", "", applies=lambda _: False, witness=lambda _: True),
    )
    monkeypatch.setattr(mechanism, "_decided", {})
    host = facts()._replace(release="6.17.3-a")
    assert [difference.source for difference in decide(differences, stage, host)] == ["yes", "by release"]
    assert len(decide((), stage, host)) == 2  # played once a process
    assert not decide((), stage, host._replace(mode=Mode.HUGE))


def test_a_rule_stands_on_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fault, "window_to_read", lambda: "v6.8")
    first = OnTop(lambda earlier: lambda: f"{earlier()}, a")
    second = OnTop(lambda earlier: lambda: f"{earlier()}, b")
    with following([Known((0, 0), "", "", ((fault, "window_to_read", rule),)) for rule in (first, second)]):
        assert str(fault.window_to_read()) == "v6.8, a, b"  # type: ignore[call-arg]
    assert str(fault.window_to_read()) == "v6.8"  # type: ignore[call-arg]


def test_the_rules_are_there_for_as_long_as_the_referee() -> None:
    before = (fault.window_to_read, mremap.mremap_in_pieces, AddressSpace.evict_unused)
    with following(KNOWN):
        after = (fault.window_to_read, mremap.mremap_in_pieces, AddressSpace.evict_unused)
        assert not any(rule is earlier for rule, earlier in zip(after, before, strict=True))
    assert (fault.window_to_read, mremap.mremap_in_pieces, AddressSpace.evict_unused) == before
