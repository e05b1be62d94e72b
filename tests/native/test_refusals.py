"""Where a program cannot be run inside: one line and a status."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.native.inside import Inside
from tests.support.client import Nursery
from tests.support.watched_daemon import Daemon

CANNOT_RUN, NO_DAEMON = 8, 3


def refused(inside: Inside, *argv: str) -> tuple[int, str]:
    """Run what cannot be run, and return the status and the one line."""
    end = inside.run(argv)
    assert end.output == ""
    assert end.errors.count("\n") == 1, end.errors
    return end.status, end.errors


def test_no_program(inside: Inside, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("no program\n")
    text.chmod(0o755)
    other = tmp_path / "other"
    other.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(11) + b"\xb7\x00" + bytes(100))
    other.chmod(0o755)
    script = tmp_path / "script"
    script.write_text("#!/nowhere\n")
    script.chmod(0o755)
    for path in (text, other, script, tmp_path / "none"):
        assert refused(inside, str(path))[0] == CANNOT_RUN


def test_another_users_rights(inside: Inside, tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can make another user's program set-user-ID")
    program = tmp_path / "program"
    program.write_bytes(Path("/bin/true").read_bytes())
    os.chown(program, 1, 1)
    program.chmod(0o4755)
    assert "set-user-ID" in refused(inside, str(program))[1]


def test_nobody_listens(inside: Inside, tmp_path: Path) -> None:
    alone = Inside({**os.environ, "KERNELD_SOCKET": str(tmp_path / "none"), "PYTHONPATH": os.getcwd()})
    assert refused(alone, "true")[0] == NO_DAEMON


class Closed(Daemon):
    """A kerneld that takes no programs in."""

    options = ("--no-exec",)


def test_a_machine_that_takes_none_in(tmp_path: Path) -> None:
    nursery = Nursery()
    daemon = Closed(tmp_path, nursery)
    status, line = refused(Inside(daemon.environment), "true")
    assert status == CANNOT_RUN
    assert "--no-exec" in line
    daemon.close()
    nursery.close()


def test_a_machine_that_is_too_small(tmp_path: Path, programs: dict[str, Path]) -> None:
    """It meets the OOM killer, as on Linux."""
    nursery = Nursery()
    daemon = Daemon(tmp_path, nursery, check_invariants=False)
    assert Inside(daemon.environment).run([str(programs["eats"]), "20"]).status == -signal.SIGKILL
    assert daemon.end() == 0
    assert [entry["event"].split(":")[0] for entry in daemon.complaints()] == ["Out of memory"]
    nursery.close()
