"""A hostile submission spoils only itself: not the host, not the submission that is graded beside it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from kerneld.commands.grade.cell.isolation import Walls
from kerneld.commands.grade.grading import Means
from kerneld.commands.grade.limits import Limits
from kerneld.commands.grade.model import Result
from kerneld.commands.grade.rows import Part
from tests.commands.grade.conftest import Grade, lost
from tests.commands.grade.submission import write_hostile, write_submission
from tests.support.daemons import wait_until_gone
from tests.support.effort import EFFORT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# A usual run has each attack once, `make test-long` in the programs and in the build.
ATTACKS: tuple[str, ...] = ("ENDLESS_OUTPUT", "WRITES_OUTSIDE", "KILLS", "DIALS", "IGNORES_ALL")
AT_BUILD: tuple[str, ...] = ("FORK_BOMB", "EATS_MEMORY", "FILLS_DISK", "HANGS")
if EFFORT > 1:
    ATTACKS += ("FORK_BOMB", "EATS_MEMORY", "FILLS_DISK", "HANGS")
    AT_BUILD += ("KILLS", "WRITES_OUTSIDE")
_LIMITS = Limits(build_seconds=12, target_seconds=10, memory_mib=400)
_SPOILED = "spoiled-by-a-submission"


class Scene:
    """A host with something to spoil."""

    def __init__(self, top: Path) -> None:
        self.outside = top / "outside"
        self.outside.mkdir()
        self.outside.chmod(0o777)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.right = write_submission(top / "right")
        self.right_readme = (self.right / "README").read_bytes()
        # Of the user that grades: where that is not root, it is the user of the programs too.
        self.bystander = subprocess.Popen(["sleep", "1000"])

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    def close(self) -> None:
        self.listener.close()
        self.bystander.kill()
        self.bystander.wait()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """The host."""
    scene = Scene(tmp_path_factory.mktemp("host"))
    yield scene
    scene.close()


_UNCOUNTED = "Linux does not limit the processes of this user: a fork bomb would take the machine"


def attackers(scene: Scene, walls: Walls) -> list[Path]:
    top = scene.right.parent
    more = {"outside": scene.outside, "other": scene.right, "port": scene.port}
    used = [[name for name in names if walls.limit or name != "FORK_BOMB"] for names in (ATTACKS, AT_BUILD)]
    teams = [write_hostile(top / name, name, **more) for name in used[0]]  # type: ignore[arg-type]
    return teams + [write_hostile(top / f"{name}-build", name, at_build=True, **more) for name in used[1]]  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def results(scene: Scene, grade: Grade, means: Means) -> dict[str, Result]:
    """The results of all attackers, with the right submission between them."""
    if not means.walls.files:
        pytest.skip("this host allows no namespaces")
    teams = attackers(scene, means.walls)
    return grade_beside(scene.right, teams, grade, means)


def grade_beside(right: Path, teams: list[Path], grade: Grade, means: Means, **changes: object) -> dict[str, Result]:
    """Grade attackers, who have little time, and beside them the right submission, which has as much as usual."""
    with ThreadPoolExecutor(1) as beside:
        alone = beside.submit(grade, [right], **changes)
        found = grade(teams, checklist=replace(means.checklist, limits=_LIMITS), **changes)
        return {**found, **alone.result()}


def test_the_right_one_between_them_loses_nothing(results: dict[str, Result]) -> None:
    # Its part5.txt is empty.
    assert set(lost(results["right"])) == {"part5_form", "part5_order"}, lost(results["right"])


@pytest.mark.parametrize("name", [*ATTACKS, *(f"{name}-build" for name in AT_BUILD)])
def test_an_attacker_gets_no_points_for_its_programs(results: dict[str, Result], name: str) -> None:
    if name not in results:
        pytest.skip(_UNCOUNTED)
    assert {"inspector_opens", "inspector_live", "target_visible"} <= set(lost(results[name]))
    assert lost(results[name]).keys() & {"references", "readme"} == set()


def test_each_attack_is_named(results: dict[str, Result]) -> None:
    # On a busy host the time is over before the output is too much.
    assert lost(results["ENDLESS_OUTPUT"])["inspector_usage"] in (
        "inspector printed more than 8 MiB",
        "./inspector did not end",
    )
    memory = lost(results["EATS_MEMORY-build"])["build"]
    assert "MiB of memory" in memory or memory == "make did not end within 12 s"
    assert "did not end" in lost(results["HANGS-build"])["build"]


def test_a_fork_bomb_is_named(results: dict[str, Result]) -> None:
    if "FORK_BOMB-build" not in results:
        pytest.skip(_UNCOUNTED)
    # Where the programs have a user of their own, Linux itself makes no more processes for it (RLIMIT_NPROC).
    assert lost(results["FORK_BOMB-build"])["build"] in (
        "more than 64 processes at once",
        "make did not end within 12 s",
    )


@pytest.mark.usefixtures("results")
def test_nothing_was_written_outside(scene: Scene) -> None:
    assert list(scene.outside.iterdir()) == []
    assert (scene.right / "README").read_bytes() == scene.right_readme
    assert [path for place in ("/tmp", "/var/tmp", "/dev/shm") if (path := Path(place) / _SPOILED).exists()] == []


def test_no_program_has_a_capability(results: dict[str, Result]) -> None:
    assert "remounted: 0" in results["WRITES_OUTSIDE"].output


@pytest.mark.usefixtures("results")
def test_nobody_outside_was_killed_or_called(scene: Scene) -> None:
    assert scene.bystander.poll() is None
    with pytest.raises(BlockingIOError):
        scene.listener.accept()


@pytest.mark.usefixtures("results")
def test_nothing_is_left(scene: Scene) -> None:
    assert left_processes(scene.port) == []


def left_processes(port: int) -> list[int]:
    """Return the hostile processes of a scene, by the name that they give themselves."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            comm = (entry / "comm").read_text().strip() if entry.name.isdigit() else ""
        except OSError:
            continue
        if comm == f"hostile{port}":
            found.append(int(entry.name))
    return found


@pytest.mark.skipif(os.geteuid() != 0, reason="without root and without namespaces there is no wall to test")
def test_without_namespaces_another_user_is_wall_enough(
    tmp_path_factory: pytest.TempPathFactory, grade: Grade, means: Means
) -> None:
    if not means.walls.user:
        pytest.skip("this host has no other user")
    scene = Scene(tmp_path_factory.mktemp("docker"))
    try:
        # A host like this one shows its scratch directories to the submissions; it is their own user that protects.
        top = scene.right.parent
        teams = []
        for name in ("FORK_BOMB", "KILLS", "HANGS") if EFFORT > 1 else ("KILLS",):
            teams.append(write_hostile(top / name, name, other=scene.right, port=scene.port))
        for name in ("FORK_BOMB", "KILLS", "HANGS") if EFFORT > 1 else ("FORK_BOMB",):
            teams.append(write_hostile(top / f"{name}-build", name, at_build=True, port=scene.port))
        found = grade_beside(scene.right, teams, grade, means, walls=Walls(user=True))
        assert set(lost(found["right"])) == {"part5_form", "part5_order"}, lost(found["right"])
        assert scene.bystander.poll() is None
        assert left_processes(scene.port) == []
        assert (scene.right / "README").read_bytes() == scene.right_readme
    finally:
        scene.close()


@pytest.mark.parametrize("has_namespaces", [True, False])
def test_a_submission_is_not_followed_out_of_its_directory(
    tmp_path: Path, grade: Grade, means: Means, has_namespaces: bool
) -> None:
    """Neither by the grader, nor by the programs: without namespaces as root, for they have no right to be there."""
    if not has_namespaces and not means.walls.user:
        pytest.skip("this host has no other user")
    walls = means.walls if has_namespaces else Walls(user=True)
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "part4").mkdir()
    (secret / "part4" / "Makefile").write_text("all:\n\techo stolen\n")
    (secret / "references.txt").write_text("stolen\n")
    team = write_submission(tmp_path / "team")
    (team / "references.txt").unlink()
    (team / "references.txt").symlink_to(secret / "references.txt")
    (team / "user" / "part5.txt").unlink()
    os.mkfifo(team / "user" / "part5.txt")
    for file in (team / "user" / "part4").iterdir():
        file.unlink()
    (team / "user" / "part4").rmdir()
    (team / "user" / "part4").symlink_to(secret / "part4")
    (result,) = grade([team], Part.FILES, Part.PART5, Part.BUILD, walls=walls).values()
    seen = lost(result)
    assert seen["references"] == "there is no references.txt in the top directory"
    assert seen["part5_order"] == "there is no user/part5.txt"
    assert "build" in seen
    assert "stolen" not in result.output


def test_compiled_programs_are_not_copied(tmp_path: Path, grade: Grade) -> None:
    team = write_submission(tmp_path / "team")
    part4 = team / "user" / "part4"
    (part4 / "Makefile").write_text("all:\n\techo nothing to do\n")
    for name in ("inspector", "target"):
        (part4 / name).write_bytes(Path("/bin/true").read_bytes())
        (part4 / name).chmod(0o755)
    (result,) = grade([team], Part.BUILD).values()
    assert "there is no program inspector and no program target" in lost(result)["build"]


@pytest.mark.parametrize("missing", ["Makefile", "part4", "user"])
def test_what_is_missing_is_named(tmp_path: Path, grade: Grade, missing: str) -> None:
    team = write_submission(tmp_path / "team")
    path = {"Makefile": team / "user/part4/Makefile", "part4": team / "user/part4", "user": team / "user"}[missing]
    path.unlink() if path.is_file() else shutil.rmtree(path)
    (result,) = grade([team], Part.BUILD, Part.INSPECTOR).values()
    words = {"Makefile": "there is no Makefile in user/part4", "part4": "there is no directory user/part4",
             "user": "there is no directory user"}  # fmt: skip
    assert lost(result)["build"] == words[missing]
    assert lost(result)["inspector_opens"] == "the programs were not built"


def test_ctrl_c_ends_everything(tmp_path: Path, means: Means) -> None:
    if not means.walls.processes:
        pytest.skip("this host allows no pid namespace")
    port = os.getpid() % 50_000
    team = write_hostile(tmp_path / "team", "IGNORES_ALL", at_build=True, port=port)
    words = [sys.executable, "-P", "-m", "kerneld", "grade", "--only", "build", str(team)]
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    grader = subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
        env={**os.environ, "TMPDIR": str(scratch)},
    )  # fmt: skip
    with contextlib.ExitStack() as stack:
        pidfds = [os.pidfd_open(pid) for pid in first_processes(port, grader)]
        for pidfd in pidfds:
            stack.callback(os.close, pidfd)
        os.killpg(grader.pid, signal.SIGINT)
        _out, err = grader.communicate(timeout=60)
        # The grader waits for what it ends: the submission may have made more processes meanwhile.
        assert left_processes(port) == []
        assert all(wait_until_gone(pidfd) for pidfd in pidfds)
    assert grader.returncode == -signal.SIGINT
    assert err.endswith(b"kerneld: ended by SIGINT\n")
    assert list(scratch.iterdir()) == []


def first_processes(port: int, grader: subprocess.Popen[bytes]) -> list[int]:
    """Wait until a hostile process runs, and return all that do. The end of the grader is the end of the wait."""
    deadline = time.monotonic() + 60
    while not (found := left_processes(port)):
        assert time.monotonic() < deadline
        with contextlib.suppress(subprocess.TimeoutExpired):
            raise AssertionError(f"the grader has ended: {grader.wait(0.05)}")
    return found
