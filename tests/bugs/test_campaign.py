"""A long campaign can be ended and taken up again: what was right is not run again, what was not is."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bugs.__main__ import Campaign, Verdict


def test_what_is_right_is_not_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "results")
    verdicts = {"a": (True, "found"), "b": (False, "MISSED"), "c": (True, "found")}
    first = Campaign(path)
    first.run(["a", "b", "c"], verdicts.__getitem__, 2)
    assert (first.good, first.bad) == ({"a", "c"}, ["b"])
    assert "3/3  c: found  (about 0 minutes left)" in capsys.readouterr().out

    with open(path, "a") as file:
        file.write('{"name": "b", "go')  # The machine went down here.
    asked: list[str] = []
    second = Campaign(path)

    def attempt(name: str) -> Verdict:
        asked.append(name)
        return True, "found"

    second.run(["a", "b", "c"], attempt, 1)
    assert (asked, second.bad) == (["b"], [])
    assert "2 of 3 are done already" in capsys.readouterr().out
    assert Campaign(path).good == {"a", "b", "c"}


def test_a_later_failure_counts(tmp_path: Path) -> None:
    path = str(tmp_path / "results")
    Campaign(path).run(["a"], lambda _name: (True, "found"), 1)
    (tmp_path / "results").write_text(
        (tmp_path / "results").read_text() + '{"name": "a", "good": false, "words": ""}\n'
    )
    assert Campaign(path).good == set()
