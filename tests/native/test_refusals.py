"""Where a program cannot be run inside: one line and a status."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from tests.native.conftest import NativeDaemon
from tests.native.inside import End, Inside
from tests.support.client import Nursery
from tests.support.rights import needs_another_user
from tests.support.watched_daemon import Daemon

CANNOT_RUN, NO_DAEMON = 8, 3
NO_SECCOMP = """
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
code = [(0x20, 0, 0, 0), (0x15, 0, 3, 157), (0x20, 0, 0, 16), (0x15, 0, 1, 22), (0x06, 0, 0, 0x50016),
        (0x06, 0, 0, 0x7FFF0000)]
packed = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *one) for one in code))
program = ctypes.create_string_buffer(struct.pack("<H6xQ", len(code), ctypes.addressof(packed)))
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, program) == 0
os.execv(sys.argv[1], sys.argv[1:])
"""


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
    small = tmp_path / "small"
    small.write_bytes(b"\x7fELF\x01\x01\x01" + bytes(11) + b"\x03\x00" + bytes(100))
    small.chmod(0o755)
    script = tmp_path / "script"
    script.write_text("#!/nowhere\n")
    script.chmod(0o755)
    for path in (text, other, small, script, tmp_path / "none", tmp_path):
        assert refused(inside, str(path))[0] == CANNOT_RUN


@needs_another_user
def test_another_users_rights(inside: Inside, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(Path("/bin/true").read_bytes())
    os.chown(program, 1, 1)
    program.chmod(0o4755)
    assert "set-user-ID" in refused(inside, str(program))[1]


@needs_another_user
def test_another_users_rights_are_not_given_inside(inside: Inside, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(Path(shutil.which("id") or "/usr/bin/id").read_bytes())
    os.chown(program, 1, 1)
    program.chmod(0o4755)
    assert inside.run(["sh", "-c", f"{program} -u; exit 4"]) == End(4, "0\n", "")


def test_no_program_inside(inside: Inside, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(11) + b"\xb7\x00" + bytes(100))
    other.chmod(0o755)
    python = Path("/usr/bin/python3")
    if not python.exists():
        pytest.skip("this host has no /usr/bin/python3")
    end = inside.agrees([str(python), "-c", f"import os; os.execv({str(other)!r}, ['other'])"])
    assert "Exec format error" in end.errors


def test_no_compiler_at_the_first_use(native_daemon: NativeDaemon, tmp_path: Path) -> None:
    without = {**native_daemon.environment, "PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    status, line = refused(Inside(without), "/bin/true")
    assert status == CANNOT_RUN
    assert "compiler" in line


def test_no_seccomp(native_daemon: NativeDaemon) -> None:
    """A filter that refuses further filters with EINVAL, as a kernel without them does."""
    inside = Inside(native_daemon.environment)
    end = inside.outside([sys.executable, "-P", "-c", NO_SECCOMP, *inside.command(["/bin/true"])])
    assert (end.status, end.output) == (CANNOT_RUN, "")
    assert end.errors == "kerneld: this host has no seccomp filters: the program cannot be run\n"


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
