"""The second half of `kerneld run --explain`: a watcher of the calls that do not reach kerneld.

The preloaded library takes only libc's syscall(). The real kernel answers a syscall instruction in the program, a call
of a static program, and a number of another semester. It may have another call on that number (mseal on 462), and its
errno misleads. A seccomp filter reports each such call to the watcher before the real kernel runs it. The watcher
prints one line on stderr for each kind of call, and lets the real kernel run the call.

Owns the watcher's process. It is no child of the program, which therefore cannot wait for it by mistake. It ends with
the last process under the filter. Answers to seccomp(2), seccomp_unotify(2) and Linux v6.8 kernel/seccomp.c.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import select
import signal
import socket
import struct
from pathlib import Path
from typing import NamedTuple, NoReturn

from kerneld.commands.semesters import SEMESTERS, find_call
from shared.standard_streams import complain

_AUDIT_ARCH_X86_64 = 0xC000003E
_PR_SET_NO_NEW_PRIVS = 38
_NR_SECCOMP = 317
_SECCOMP_SET_MODE_FILTER = 1
_FLAG_NEW_LISTENER = 8
_RET_ALLOW, _RET_USER_NOTIF = 0x7FFF0000, 0x7FC00000
_USER_NOTIF_FLAG_CONTINUE = 1
_LD_W_ABS, _JEQ_K, _JGE_K, _RET_K = 0x20, 0x15, 0x35, 0x06
_INSTRUCTION = struct.Struct("<HBBI")
_PROGRAM = struct.Struct("<H6xQ")
_AT_NR, _AT_ARCH = 0, 4
_NOTIF = struct.Struct("<QIIiIQ6Q")
"""struct seccomp_notif: id, pid, flags, and struct seccomp_data: nr, arch, instruction_pointer, args."""
_NOTIF_RESP = struct.Struct("<QqiI")
_IOCTL_RECV = 0xC000_2100 | _NOTIF.size << 16
_IOCTL_SEND = 0xC000_2101 | _NOTIF_RESP.size << 16
_HOSTS_NAMES = {
    451: "cachestat", 452: "fchmodat2", 453: "map_shadow_stack", 462: "mseal", 463: "setxattrat", 464: "getxattrat",
    465: "listxattrat", 466: "removexattrat", 467: "open_tree_attr", 468: "file_getattr", 469: "file_setattr",
    470: "listns",
}  # fmt: skip
"""The calls of newer Linux versions with those numbers."""
_LIBC_NAMES = ("libc.so", "libc-")
"""Files whose calls are no mistake: glibc's fchmodat() makes call 452."""


class _Libc:
    """The two calls that Python has no names for."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)

    def install_filter(self, program: bytes) -> int:
        """Return the descriptor that tells of calls. Raises OSError."""
        for is_last in (False, True):
            fd = self._libc.syscall(_NR_SECCOMP, _SECCOMP_SET_MODE_FILTER, _FLAG_NEW_LISTENER, program)
            if fd >= 0:
                return int(fd)
            code = ctypes.get_errno()
            if code != errno.EACCES or is_last:
                raise OSError(code, os.strerror(code))
            # Without privilege the kernel asks for no_new_privs first: no program may then gain privilege.
            if self._libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
                raise OSError(ctypes.get_errno(), "no_new_privs")
        raise AssertionError


def filter_instructions() -> list[tuple[int, int, int, int]]:
    """Return the filter, each instruction as code, jt, jf, k. It reports the x86-64 numbers of all semesters."""
    runs: list[range] = []
    for number in sorted(number for semester in SEMESTERS.values() for number in semester.numbers):
        if runs and number <= runs[-1].stop:
            runs[-1] = range(runs[-1].start, max(number + 1, runs[-1].stop))
        else:
            runs.append(range(number, number + 1))
    rest = 2 * len(runs) + 1
    code = [(_LD_W_ABS, 0, 0, _AT_ARCH), (_JEQ_K, 0, rest, _AUDIT_ARCH_X86_64), (_LD_W_ABS, 0, 0, _AT_NR)]
    for index, run in enumerate(runs):
        left = 2 * (len(runs) - index)
        # A number below the run is allowed, a number in the run is reported, a number above it is compared with the
        # next run.
        code += [(_JGE_K, 0, left - 1, run.start), (_JGE_K, 0, left - 1, run.stop)]
    return [*code, (_RET_K, 0, 0, _RET_ALLOW), (_RET_K, 0, 0, _RET_USER_NOTIF)]


def watch_calls(abi: str, library: Path) -> None:
    """Watch the calls that this process, soon the program, and its children make past `library`.

    On a host without such filters, or under such a filter, a line says that, and no call is watched.
    """
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        _become_watcher(theirs, abi, library)
    theirs.close()
    os.waitpid(pid, 0)
    with ours:
        packed = b"".join(_INSTRUCTION.pack(*one) for one in filter_instructions())
        code = ctypes.create_string_buffer(packed, len(packed))
        try:
            fd = _Libc().install_filter(_PROGRAM.pack(len(packed) // _INSTRUCTION.size, ctypes.addressof(code)))
        except OSError as error:
            complain(f"kerneld: calls that bypass kerneld cannot be reported here: {error.strerror}")
            return
        socket.send_fds(ours, [b"x"], [fd])
        os.close(fd)


def _become_watcher(channel: socket.socket, abi: str, library: Path) -> NoReturn:
    """In a child: leave the program's family, and watch until no process is left under the filter."""
    status = 1
    try:
        if os.fork():
            os._exit(0)
        os.setsid()
        for signo in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(signo, signal.SIG_IGN)
        with open(os.devnull, "r+b", buffering=0) as nowhere:
            os.dup2(nowhere.fileno(), 0)
            os.dup2(nowhere.fileno(), 1)
        _data, fds, _flags, _address = socket.recv_fds(channel, 1, 1)
        channel.close()
        for fd in fds:
            os.dup2(fd, 3)
            os.closerange(4, os.sysconf("SC_OPEN_MAX"))
            Watcher(abi, library).follow(3)
        status = 0
    finally:
        os._exit(status)


class Told(NamedTuple):
    """One call that the filter reports."""

    number: int
    id: int
    pid: int
    instruction_pointer: int


class Watcher:
    """Prints a line for each kind of call that bypasses kerneld."""

    def __init__(self, abi: str, library: Path) -> None:
        self._abi = abi
        self._semester = SEMESTERS[abi]
        self._library = str(library)
        self._said: set[str] = set()

    def follow(self, fd: int) -> None:
        """Answer the filter's descriptor until no process is left under the filter."""
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        while True:
            for _fd, events in poll.poll():
                if not events & select.POLLIN:
                    return
                told = _receive(fd)
                if told is not None:
                    self._say(told)
                    _let_go_on(fd, told.id)

    def _say(self, told: Told) -> None:
        words = self.words(told, *_look_into(told, self._library))
        if words is not None and words not in self._said:
            self._said.add(words)
            complain(f"kerneld: {words}")

    def words(self, told: Told, comm: str, code: str, has_library: bool) -> str | None:
        """Return the line for a call of process `comm`, by code of the file `code`; None for a call that is no mistake.

        `has_library` says whether the preloaded library is in that process.
        """
        number = told.number
        answers = f"the real kernel answers (there it is {_HOSTS_NAMES[number]}), not kerneld"
        if code == self._library:
            # The library answers the numbers of its own semester: this is another one's.
            abi, name = find_call(number) or ("?", "?")
            numbers = self._semester.numbers
            return (
                f"syscall({number}, ...) is {name} of --abi {abi}, and this is --abi {self._abi} "
                f"({numbers[0]} to {numbers[-1]}): {answers}"
            )
        if number not in self._semester.numbers or os.path.basename(code).startswith(_LIBC_NAMES):
            return None
        how = (
            "by a syscall instruction of its own, not by libc's syscall()"
            if has_library
            else "and the library that takes calls is not in it (a static program, or LD_PRELOAD was taken away)"
        )
        return f"process {told.pid} ({comm}) calls {number}, {self._semester.name(number)}, {how}: {answers}"


def _receive(fd: int) -> Told | None:
    """Return the next call that the filter reports; None when the caller has been killed meanwhile."""
    buffer = bytearray(_NOTIF.size)
    try:
        fcntl.ioctl(fd, _IOCTL_RECV, buffer)
    except OSError:
        return None
    id_, pid, _flags, number, _arch, instruction_pointer, *_args = _NOTIF.unpack(buffer)
    return Told(number, id_, pid, instruction_pointer)


def _look_into(told: Told, library: str) -> tuple[str, str, bool]:
    """Return the name of the calling process, the file of the calling code, and whether the process has `library`.

    A name that cannot be read is empty.
    """
    comm, code, has_library = "", "", False
    with contextlib.suppress(OSError):
        comm = "".join(
            char if char.isprintable() else "?"
            for char in Path(f"/proc/{told.pid}/comm").read_text("utf-8", "replace")[:-1]
        )
        for line in Path(f"/proc/{told.pid}/maps").read_text("utf-8", "surrogateescape").splitlines():
            bounds, *_between, name = line.split(maxsplit=5) if line.count(" ") > 5 else [*line.split(), ""]
            start, _, end = bounds.partition("-")
            if int(start, 16) <= told.instruction_pointer < int(end, 16):
                code = name
            has_library = has_library or name == library
    return comm, code, has_library


def _let_go_on(fd: int, id_: int) -> None:
    # A caller that has been killed meanwhile needs no answer.
    with contextlib.suppress(OSError):
        fcntl.ioctl(fd, _IOCTL_SEND, bytearray(_NOTIF_RESP.pack(id_, 0, 0, _USER_NOTIF_FLAG_CONTINUE)))
