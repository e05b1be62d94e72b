"""Tables of real processes that know nothing of kerneld, against a real daemon."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kerneld.referee.rights import sees_frames
from shared.client import Process, realmem
from shared.uapi.shadowpt import Layout
from tests.c.host_tables import END, PAGE, PAGES, PW, START, A, M, N, W, opened
from tests.c.steps import Stepper
from tests.support.compiler import ROOT, build
from tests.support.daemons import environment, kerneld, running_daemon
from tests.support.effort import examples
from tests.support.patience import SECONDS


@pytest.fixture(scope="session")
def host_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program of many steps."""
    return build(tmp_path_factory.mktemp("host") / "host_steps", [ROOT / "tests" / "c" / "host_steps.c"])


def f24(flags: int) -> int:
    """Return flags of fall 2023 as those of fall 2024."""
    return flags & (A | N) | (4 if flags & M else 0)


STEPS: list[tuple[str, int, int, int]] = [
    ("mapped", 0, 8, A | N | W),
    ("written", 0, 1, A | N | W | M | PW),
    ("read", 1, 2, A | N | W | M),
    ("unmapped", 4, 6, 0),
    ("protected", 0, 1, A | N | M),
    ("forked", 0, 1, A | N | W | M),
    ("copied", 0, 1, A | N | W | M | PW),
    ("file mapped", 12, 13, A | W),
    ("file read", 12, 13, A | W | M),
    ("file written", 12, 13, A | W | M | PW),
]


@pytest.mark.parametrize("layout", [Layout.F24, Layout.F23])
def test_every_step_is_seen_on_the_openers_next_call(layout: Layout, host_program: Path, daemon_socket: Path) -> None:
    with Stepper([host_program]) as target:
        assert target.line() == "ready\n"
        with opened(daemon_socket, target.process.pid, layout=layout) as table:
            expected = [0] * PAGES
            assert table.flags() == expected
            for name, first, last, flags in STEPS:
                assert target.step() == f"{name}\n"
                value = flags if layout is Layout.F23 else f24(flags)
                expected[first:last] = [value] * (last - first)
                assert table.flags() == expected, name
            assert target.step() == "second program\n"
            assert table.flags() == [0] * PAGES


def test_changes_are_seen_without_a_call(host_program: Path, daemon_socket: Path) -> None:
    """By the interval alone: mappings, frames, an execve; and an exit, by its pidfd."""
    with Stepper([host_program]) as target:
        target.line()
        with opened(daemon_socket, target.process.pid) as table:
            target.step()
            table.wait_for([3] * 8 + [0] * 8)
            target.step()
            table.wait_for([7] + [3] * 7 + [0] * 8)
            before = table.process.sequence
            target.process.kill()
            target.process.wait(SECONDS)
            table.wait_for([0] * PAGES)
            assert table.process.sequence > before
            table.process.shadowpt_start()
            assert table.rows() == [(0, 0)] * PAGES


def test_only_what_changes_is_written_and_a_stopped_table_stays(host_program: Path, daemon_socket: Path) -> None:
    with Stepper([host_program]) as target:
        target.line()
        with opened(daemon_socket, target.process.pid) as table:
            target.step()
            table.wait_for([3] * 8 + [0] * 8)
            sequence = table.process.sequence
            for _call in range(10):
                table.process.getpid()
            assert table.process.sequence == sequence
            table.process.shadowpt_stop()
            target.step()
            for _call in range(10):
                table.process.getpid()
            assert [flags for flags, _pfn in table.rows()] == [3] * 8 + [0] * 8
            table.process.shadowpt_start()
            assert table.flags()[0] == 7


def test_frames_are_the_hosts_and_contents_are_read_by_them(host_program: Path, daemon_socket: Path) -> None:
    with Stepper([host_program]) as target:
        target.line()
        with opened(daemon_socket, target.process.pid) as table:
            target.step()
            target.step()
            table.flags()
            pfn = table.rows()[0][1]
            with open(f"/proc/{target.process.pid}/pagemap", "rb") as pagemap:
                pagemap.seek(START // PAGE * 8)
                assert pfn == int.from_bytes(pagemap.read(8), "little") & (1 << 55) - 1
            for wrong in (0, pfn + (1 << 40), (1 << 64) - 1):
                with pytest.raises(OSError, match="Invalid argument"):
                    table.process.shadowpt_page_contents(wrong)
            if pfn == 0:
                pytest.skip("this host shows no frame numbers")
            assert table.process.shadowpt_page_contents(pfn)[:6] == b"hello\0"


def test_bash_and_an_inspector_of_itself(daemon_socket: Path) -> None:
    with Stepper(["bash"]) as bash:
        assert bash.process.stdin is not None
        bash.process.stdin.write("echo $$\n")
        bash.process.stdin.flush()
        pid = int(bash.line())
        maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
        start, end = next(line.split()[0].split("-") for line in maps if line.endswith("[heap]"))
        with opened(daemon_socket, pid, int(start, 16), min(int(end, 16), int(start, 16) + 0x10000)) as table:
            assert all(flags & 3 == 3 for flags in table.flags())
            assert 7 in table.flags()
    memory = realmem.map_anonymous(2 * PAGE)
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import tests.c.test_host_targets as t; t.inspect_oneself()"
    subprocess.run([sys.executable, "-c", code], env=environment(daemon_socket), check=True, timeout=SECONDS)
    realmem.unmap(memory, 2 * PAGE)


def inspect_oneself() -> None:
    """In a process of its own: one that kerneld has is shown as kerneld keeps it, not as the host does."""
    memory = realmem.map_anonymous(2 * PAGE)
    realmem.view(memory, PAGE)[0] = 1
    with opened(Path(os.environ["KERNELD_SOCKET"]), os.getpid(), memory, memory + 2 * PAGE) as table:
        assert table.flags() == [0, 0]


def refuses(path: Path, pid: int, *, host: bool = True) -> bool:
    """Tell whether an open is EINVAL; any other failure is one of the test."""
    try:
        with opened(path, pid, host=host):
            return False
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return True


def test_who_asks_is_served_and_nobody_else(host_program: Path, daemon_socket: Path, tmp_path: Path) -> None:
    """By default the ABI's EINVAL for a process that is not attached holds for every client that does not ask."""
    with Stepper([host_program]) as target:
        target.line()
        pid = target.process.pid
        assert refuses(daemon_socket, pid, host=False)
        assert not refuses(daemon_socket, pid)
        for option, asked, unasked in (("--no-host-targets", False, False), ("--host-targets", True, True)):
            directory = tmp_path / option
            directory.mkdir(mode=0o700)
            with running_daemon(directory / "sock", option):
                assert refuses(directory / "sock", pid) is not asked
                assert refuses(directory / "sock", pid, host=False) is not unasked


def test_what_is_no_process_is_einval(daemon_socket: Path) -> None:
    """Numbers of nobody, a thread that is no process, a kernel thread, a zombie."""
    event = threading.Event()
    thread = threading.Thread(target=event.wait)
    thread.start()
    zombie = os.fork()
    if zombie == 0:
        os._exit(0)
    os.waitid(os.P_PID, zombie, os.WEXITED | os.WNOWAIT)
    try:
        # In a pid namespace no kernel thread is seen, and 2 is anybody's.
        status = Path("/proc/2/status")
        kthreadd = 0 if status.exists() and b"VmSize:" in status.read_bytes() else 2
        for pid in (0, -1, kthreadd, 1 << 31, 1 << 62, 0x7FFF_FFFF, thread.native_id or 0, zombie):
            assert refuses(daemon_socket, pid), pid
    finally:
        event.set()
        thread.join()
        os.waitpid(zombie, 0)


def test_many_tables_of_a_real_process_leave_nothing(host_program: Path, unchecked_daemon: tuple[Path, int]) -> None:
    path, daemon_pid = unchecked_daemon
    with Stepper([host_program]) as target, Process.attach(str(path)) as process:
        target.line()
        entries = realmem.map_anonymous(PAGE)
        before, tables = 0, examples(200)
        for number in range(tables):
            process.shadowpt_open(target.process.pid, START, END, entries, host=True)
            process.shadowpt_start()
            process.shadowpt_close()
            with pytest.raises(OSError, match="Invalid argument"):
                process.shadowpt_open(target.process.pid, START, START, entries, host=True)
            if number in (0, tables - 1):
                # The pidfd goes in the turn after the close; the process that looks stays after the first.
                process.getpid()
                process.getpid()
                before = before or len(os.listdir(f"/proc/{daemon_pid}/fd"))
        assert len(os.listdir(f"/proc/{daemon_pid}/fd")) == before
        realmem.unmap(entries, PAGE)


def inspect(path: Path, *args: object) -> subprocess.CompletedProcess[str]:
    """Run our inspector to its end."""
    return subprocess.run(
        [sys.executable, "-m", "inspector", *map(str, args)],
        env=environment(path),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def test_our_inspector_watches_any_process(host_program: Path, daemon_socket: Path) -> None:
    with Stepper([host_program]) as target:
        target.line()
        target.step()
        target.step()
        pid = target.process.pid
        maps = inspect(daemon_socket, pid)
        assert maps.returncode == 0
        assert any(line.startswith(f"{START:#014x} {START + 8 * PAGE:#014x}") for line in maps.stdout.splitlines())
        once = inspect(daemon_socket, pid, hex(START), "+64K", "--once")
        assert once.returncode == 0
        assert "16 pages: 8 allocated, 8 anonymous, 1 mapped" in once.stdout
        assert inspect(daemon_socket, pid, "[stack]", "--once").returncode == 0
        contents = inspect(daemon_socket, pid, "--contents", hex(START))
        if contents.returncode == 6:
            pytest.skip("this host shows no frame numbers")
        assert b"hello".hex(" ") in contents.stdout
    gone = inspect(daemon_socket, target.process.pid, hex(START), "+64K", "--once")
    assert (gone.returncode, gone.stderr) == (5, f"inspector: kerneld has no process {target.process.pid}\n")
    assert inspect(daemon_socket, 2, hex(START), "+64K", "--once").returncode in (5, 6)


def test_without_privilege_on_the_host_flags_are_right_and_the_inspector_says_why_pfns_are_0(
    host_program: Path, tmp_path: Path
) -> None:
    """A daemon without CAP_SYS_ADMIN, whoever runs the tests."""
    if sees_frames() and shutil.which("setpriv") is None:
        pytest.skip("no setpriv to take a capability away with")
    tmp_path.chmod(0o700)
    path = tmp_path / "sock"
    words = ["setpriv", "--bounding-set=-sys_admin"] if sees_frames() else []
    start = [*words, sys.executable, "-m", "kerneld", "start", "--detach", "--ram", "64M"]
    subprocess.run(start, env=environment(path), check=True, capture_output=True, timeout=SECONDS)
    try:
        with Stepper([host_program]) as target:
            target.line()
            target.step()
            target.step()
            pid = target.process.pid
            with opened(path, pid) as table:
                assert table.flags() == [7] + [3] * 7 + [0] * 8
                assert {pfn for _flags, pfn in table.rows()} == {0}
            once = inspect(path, pid, hex(START), "+64K", "--once")
            assert once.returncode == 0
            assert once.stderr.startswith("inspector: the host shows kerneld no frame numbers")
            contents = inspect(path, pid, "--contents", hex(START))
            assert contents.returncode == 6
            assert contents.stderr.count("\n") == 1
    finally:
        kerneld(path, "stop")
