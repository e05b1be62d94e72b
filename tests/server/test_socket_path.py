"""The directory, the lock and the socket file."""

from __future__ import annotations

import grp
import os
import socket
import stat
from pathlib import Path

import pytest

from kerneld.server.socket_path import AlreadyRunning, SocketPathError, claim, find_group, open_log
from tests.support.rights import NOBODY, needs_another_user


def test_directory_is_created_private_and_everything_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "kerneld" / "kerneld.sock"
    held = claim(str(path))
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert path.is_socket()
    held.release()
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("mode", [0o755, 0o710, 0o701, 0o770, 0o500])
def test_directory_that_is_not_0700_is_refused(tmp_path: Path, mode: int) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    directory.chmod(mode)
    with pytest.raises(SocketPathError, match=f"{mode:04o}, not 0700"):
        claim(str(directory / "kerneld.sock"))
    directory.chmod(0o700)
    assert list(directory.iterdir()) == []


@needs_another_user
def test_directory_of_another_user_is_refused(private_dir: Path) -> None:
    os.chown(private_dir, NOBODY, -1)
    with pytest.raises(SocketPathError, match=f"belongs to uid {NOBODY}"):
        claim(str(private_dir / "kerneld.sock"))


def test_symlink_is_not_followed(tmp_path: Path, private_dir: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(private_dir)
    with pytest.raises(SocketPathError, match="cannot use the socket directory"):
        claim(str(link / "kerneld.sock"))


@pytest.mark.parametrize("name", ["absent/run/kerneld.sock", "run/", "x" * 108])
def test_paths_that_will_not_do(tmp_path: Path, private_dir: Path, name: str) -> None:
    with pytest.raises(SocketPathError):
        claim(f"{tmp_path}/{name}")
    assert list(private_dir.iterdir()) == []


def test_second_claim_is_refused_and_the_first_goes_on(private_dir: Path) -> None:
    path = str(private_dir / "kerneld.sock")
    held = claim(path)
    with pytest.raises(AlreadyRunning, match=f"already running.*pid {os.getpid()}"):
        claim(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.connect(path)
    held.release()
    claim(path).release()


def test_two_sockets_share_a_directory(private_dir: Path) -> None:
    first, second = claim(str(private_dir / "a.sock")), claim(str(private_dir / "b.sock"))
    for name in ("a.sock", "b.sock"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            assert client.connect_ex(str(private_dir / name)) == 0
    first.release()
    second.release()


def test_stale_socket_and_lock_are_replaced(private_dir: Path) -> None:
    path = private_dir / "kerneld.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(str(path))
    (private_dir / "kerneld.sock.lock").write_text("1\n")
    held = claim(str(path))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.connect(str(path))
    held.release()
    assert list(private_dir.iterdir()) == []


def test_file_that_is_no_socket_is_left_alone(private_dir: Path) -> None:
    path = private_dir / "kerneld.sock"
    path.write_text("precious")
    with pytest.raises(SocketPathError, match="not a socket"):
        claim(str(path))
    assert path.read_text() == "precious"
    assert list(private_dir.iterdir()) == [path]


def test_log_file_is_private_and_no_symlink(private_dir: Path) -> None:
    path = private_dir / "kerneld.sock"
    os.close(open_log(str(path)))
    log = private_dir / "kerneld.sock.log"
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    log.unlink()
    log.symlink_to("/dev/null")
    with pytest.raises(SocketPathError):
        open_log(str(path))


def test_nobody_else_may_connect_by_the_modes(private_dir: Path) -> None:
    held = claim(str(private_dir / "kerneld.sock"))
    modes = {entry.name: stat.S_IMODE(entry.stat().st_mode) for entry in private_dir.iterdir()}
    assert modes == {"kerneld.sock": 0o600, "kerneld.sock.lock": 0o600}
    held.release()


def test_a_group_may_search_and_connect_while_the_daemon_lives(private_dir: Path) -> None:
    group = next((group for group in os.getgroups() if group != os.getgid()), os.getgid())
    held = claim(str(private_dir / "kerneld.sock"), group)
    directory, sock = private_dir.stat(), (private_dir / "kerneld.sock").stat()
    assert (directory.st_gid, stat.S_IMODE(directory.st_mode)) == (group, 0o710)
    assert (sock.st_gid, stat.S_IMODE(sock.st_mode)) == (group, 0o660)
    assert stat.S_IMODE((private_dir / "kerneld.sock.lock").stat().st_mode) == 0o600
    held.release()
    assert stat.S_IMODE(private_dir.stat().st_mode) == 0o700


def test_a_group_finds_the_directory_of_a_daemon_that_was_killed(private_dir: Path) -> None:
    group = os.getgid()
    private_dir.chmod(0o710)
    held = claim(str(private_dir / "kerneld.sock"), group)
    assert stat.S_IMODE(private_dir.stat().st_mode) == 0o710
    held.release()
    assert stat.S_IMODE(private_dir.stat().st_mode) == 0o700


def test_a_directory_that_a_group_may_read_is_kept_so(private_dir: Path) -> None:
    """As administrators give it: `install -d -m 0750 -g students`. Members can put nothing there."""
    private_dir.chmod(0o750)
    held = claim(str(private_dir / "kerneld.sock"), os.getgid())
    assert stat.S_IMODE(private_dir.stat().st_mode) == 0o750
    assert stat.S_IMODE((private_dir / "kerneld.sock").stat().st_mode) == 0o660
    held.release()
    assert stat.S_IMODE(private_dir.stat().st_mode) == 0o750


@pytest.mark.parametrize("mode", [0o755, 0o711, 0o751, 0o770, 0o730, 0o500, 0o550])
def test_a_directory_that_others_see_or_the_group_can_write_is_refused(private_dir: Path, mode: int) -> None:
    private_dir.chmod(mode)
    with pytest.raises(SocketPathError, match=f"{mode:04o}, and not 0700, 0710 or 0750"):
        claim(str(private_dir / "kerneld.sock"), os.getgid())
    private_dir.chmod(0o700)


def test_groups_by_name_and_by_number() -> None:
    entry = grp.getgrall()[0]
    assert find_group(entry.gr_name) == entry.gr_gid
    assert find_group("4321") == 4321
    assert find_group("no such group") is None
