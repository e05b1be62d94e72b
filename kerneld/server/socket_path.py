"""The daemon's socket: its directory, lock file and socket file. The daemon claims them at start and removes them at
end.

The directory is the security boundary. It belongs to the daemon's user and has mode 0700, so no other user can connect,
or put another socket in its place. With `--allow-group` the group may search the directory (0710, or 0750 if it has
that mode already) and connect to the socket (0660), but create nothing there. The daemon holds the directory open and
uses every name relative to it, so the checked directory is the used one. There is one daemon for each socket path. It
locks a lock file beside the socket with flock(2) as long as it lives. The lock tells whether an existing socket file
belongs to a running daemon or was left by one that was killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import grp
import os
import socket
import stat
from dataclasses import dataclass

from shared.wire import MAX_SOCKET_PATH

BACKLOG = 128
PRIVATE_MODE, GROUP_MODE = 0o700, 0o710
MODES_FOR_GROUP = (PRIVATE_MODE, GROUP_MODE, 0o750)
"""The modes of a directory with --allow-group: members cannot create files there, other users cannot look into it."""
SOCKET_MODE, GROUP_SOCKET_MODE = 0o600, 0o660


class SocketPathError(Exception):
    """The daemon cannot listen on that path: one line for people."""


class AlreadyRunning(SocketPathError):
    """Another daemon has the socket."""


@dataclass(slots=True)
class Claim:
    """A socket path that this daemon holds. `release` removes its files."""

    path: str
    listener: socket.socket
    directory_fd: int
    lock_fd: int
    group: int | None = None

    def release(self) -> None:
        """Close the listener and remove the socket and the lock file."""
        self.listener.close()
        for name in (os.path.basename(self.path), lock_name(self.path)):
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=self.directory_fd)
        if self.group is not None and stat.S_IMODE(os.fstat(self.directory_fd).st_mode) == GROUP_MODE:
            # A later daemon without a group needs mode 0700. A mode that the administrator has set stays.
            with contextlib.suppress(OSError):
                os.fchmod(self.directory_fd, PRIVATE_MODE)
        os.close(self.lock_fd)
        os.close(self.directory_fd)


def lock_name(path: str) -> str:
    """Return the name of the lock file of the socket at `path`."""
    return os.path.basename(path) + ".lock"


def log_name(path: str) -> str:
    """Return the name of the log file that a detached daemon at `path` writes."""
    return os.path.basename(path) + ".log"


def find_group(name: str) -> int | None:
    """Return the gid of a group given by name or number, or None for an unknown name."""
    if name.isascii() and name.isdigit():
        return int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None


def open_directory(path: str, group: int | None = None) -> int:
    """Return an fd of the directory of the socket at `path`. A missing directory is created with mode 0700.

    With `group`, a gid, the group may search it. The last component may not be a symlink: in /tmp any user may have
    made one.
    Raises SocketPathError when it is not a directory, not this user's, or open to others.
    """
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise SocketPathError(f"the socket path is longer than {MAX_SOCKET_PATH} bytes: {path}")
    directory = os.path.dirname(path) or "."
    if not os.path.basename(path):
        raise SocketPathError(f"the socket path names a directory, not a socket: {path}")
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory, 0o700)
        directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise SocketPathError(f"cannot use the socket directory {directory}: {error.strerror}") from None
    status = os.fstat(directory_fd)
    problem = None
    if status.st_uid != os.geteuid():
        problem = f"it belongs to uid {status.st_uid}, not to uid {os.geteuid()}"
    elif status.st_mode & 0o777 not in (MODES_FOR_GROUP if group is not None else (PRIVATE_MODE,)):
        allowed = "not 0700" if group is None else "and not 0700, 0710 or 0750"
        problem = f"its mode is {stat.S_IMODE(status.st_mode):04o}, {allowed}"
    elif group is not None:
        problem = _give_to_group(directory_fd, group, status)
    if problem is not None:
        os.close(directory_fd)
        raise SocketPathError(f"refusing the socket directory {directory}: {problem}")
    return directory_fd


def _give_to_group(directory_fd: int, group: int, status: os.stat_result) -> str | None:
    """Let a group search the directory. Return the problem in words, or None."""
    try:
        if status.st_gid != group:
            os.fchown(directory_fd, -1, group)
        if status.st_mode & 0o777 == PRIVATE_MODE:
            os.fchmod(directory_fd, GROUP_MODE)
    except OSError as error:
        return f"it cannot be given to group {group}: {error.strerror}"
    return None


def open_log(path: str, group: int | None = None) -> int:
    """Return an fd that appends to the log file of a detached daemon at `path`. Raises SocketPathError."""
    directory_fd = open_directory(path, group)
    try:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(log_name(path), flags, 0o600, dir_fd=directory_fd)
    except OSError as error:
        raise SocketPathError(f"cannot open the log file {path}.log: {error.strerror}") from None
    finally:
        os.close(directory_fd)


def claim(path: str, group: int | None = None) -> Claim:
    """Listen on `path`. A socket file of a dead daemon is replaced. Members of `group`, a gid, may connect too.

    Raises AlreadyRunning when another daemon holds the path, and SocketPathError for a directory or name that cannot
    be used.
    """
    directory_fd = open_directory(path, group)
    lock_fd = -1
    try:
        lock_fd = _lock(path, directory_fd)
        listener = _listen(path, directory_fd, group)
    except SocketPathError:
        if lock_fd >= 0:
            os.unlink(lock_name(path), dir_fd=directory_fd)
            os.close(lock_fd)
        os.close(directory_fd)
        raise
    return Claim(path, listener, directory_fd, lock_fd, group)


def _lock(path: str, directory_fd: int) -> int:
    """Return the fd of the locked lock file. The file has the pid of the daemon that holds the lock."""
    name = lock_name(path)
    while True:
        try:
            lock_fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory_fd)
        except OSError as error:
            raise SocketPathError(f"cannot create the lock file {path}.lock: {error.strerror}") from None
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(lock_fd, 32, 0).decode("ascii", "replace").strip()
            os.close(lock_fd)
            raise AlreadyRunning(
                f"kerneld is already running on {path}" + (f" (pid {holder})" if holder else "")
            ) from None
        if _is_still_named(lock_fd, name, directory_fd):
            os.ftruncate(lock_fd, 0)
            os.pwrite(lock_fd, f"{os.getpid()}\n".encode(), 0)
            return lock_fd
        # The last holder removed the file between our open and our lock: other daemons would not see this file.
        os.close(lock_fd)


def _is_still_named(fd: int, name: str, directory_fd: int) -> bool:
    try:
        named = os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(named, os.fstat(fd))


def _listen(path: str, directory_fd: int, group: int | None) -> socket.socket:
    """Return the listening socket. The caller holds the lock, so an existing socket file is stale."""
    name = os.path.basename(path)
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.stat(name, dir_fd=directory_fd, follow_symlinks=False).st_mode):
            raise SocketPathError(f"{path} exists and is not a socket")
        os.unlink(name, dir_fd=directory_fd)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        # Set before listen(): a new connection inherits the flag, so every datagram has credentials.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        bound = f"/proc/self/fd/{directory_fd}/{name}"
        listener.bind(bound)
        if group is not None:
            os.chown(bound, -1, group, follow_symlinks=False)
        os.chmod(bound, SOCKET_MODE if group is None else GROUP_SOCKET_MODE)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise SocketPathError(f"cannot listen on {path}: {error.strerror}") from None
    return listener
