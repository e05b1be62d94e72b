"""The comparison with another revision: its tree comes and goes, and a call that became dearer is the exit status."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from bench import compare
from bench.compare import main, worktree
from bench.counting import Counted, Counts
from bench.machine import ROOT


def git(repository: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run(
        ["git", "-C", str(repository), *identity, *arguments], check=True, capture_output=True, text=True
    ).stdout


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository of two commits, whose file says which it is of."""
    made = tmp_path / "repository"
    made.mkdir()
    git(made, "init", "-q")
    for text in ("old", "new"):
        (made / "file").write_text(text)
        git(made, "add", "file")
        git(made, "commit", "-qm", text)
    return made


def test_a_revision_has_a_tree_of_its_own_for_a_while(repository: Path) -> None:
    with worktree("HEAD~1", repository) as tree:
        assert (tree / "file").read_text() == "old"
        assert (repository / "file").read_text() == "new"
    assert not tree.exists()
    assert len(git(repository, "worktree", "list").splitlines()) == 1


@pytest.mark.parametrize("revision", ["nothing", "--help", ""])
def test_what_is_no_revision_is_refused(repository: Path, revision: str) -> None:
    with pytest.raises(OSError, match="no revision"), worktree(revision, repository):
        pass
    assert len(git(repository, "worktree", "list").splitlines()) == 1


@pytest.mark.parametrize(
    ("after", "status", "dearer"),
    [
        ({"pair": 1049, "fork": 100}, 0, []),
        ({"pair": 1050, "fork": 100}, 1, ["pair"]),
        ({"pair": 500, "fork": 106}, 1, ["fork"]),
        ({"pair": 1000, "swap": 5}, 0, []),
    ],
)
def test_a_call_that_became_dearer_is_said(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    repository: Path,
    after: Counts,
    status: int,
    dearer: list[str],
) -> None:
    def counted(tree: Path, counter: str) -> Counted:
        return Counted("here", counter, after if tree == ROOT else {"pair": 1000, "fork": 100})

    monkeypatch.setattr(compare, "count", counted)
    monkeypatch.setattr(compare, "find_counter", lambda: "callgrind")
    monkeypatch.setattr(compare, "worktree", lambda revision: worktree(revision, repository))
    assert main(["HEAD"]) == status
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said if line.endswith("dearer")] == dearer


def test_without_a_revision_or_a_counter_the_status_is_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([]) == 2

    def nothing() -> str:
        raise OSError("nothing counts here")

    monkeypatch.setattr(compare, "find_counter", nothing)
    assert main(["HEAD"]) == 2
    assert "nothing counts here" in capsys.readouterr().err
