"""`kerneld exec` in the usual case, without the library for command lines: its import takes longer than all else.

Owns no words. If anything is to be said (a wrong option, no daemon, no such program) it returns; then the command line
looks at the arguments again, and says it. It knows the options --socket and --env, each with its value behind a blank.
"""

from __future__ import annotations

import _socket
import contextlib
import os

from kerneld.commands.compiled import BuildError
from kerneld.commands.exec.build_stub import ensure_stub
from kerneld.commands.exec.launch import check_set_user_id, launch
from kerneld.commands.program import ProgramError, find_program
from kerneld.commands.semesters import SEMESTERS
from shared.client.path import default_socket_path, may_be_planted

_UCRED_BYTES, _UID = 12, slice(4, 8)
"""struct ucred of SO_PEERCRED: pid, uid, gid (unix(7))."""


def run_quickly(words: list[str]) -> None:
    """Become the program that `words` name, the arguments of `kerneld exec`. Return if that cannot be done at once."""
    path, variables, program = _parse(words)
    if not program:
        return
    path = os.path.abspath(path or default_socket_path())
    environment = {**os.environ, "KERNELD_SOCKET": path, **variables}
    with contextlib.suppress(ProgramError, BuildError, OSError):
        found = find_program(program[0])
        check_set_user_id(found)
        if _are_streams_open() and _is_daemon_there(path):
            launch(ensure_stub(), path, SEMESTERS["f24"].define, [found, *program], environment)


def _parse(words: list[str]) -> tuple[str, dict[str, str], list[str]]:
    """Return the socket's path, the variables, and the program with its arguments: no program if there are other
    options."""
    path, variables, at = "", {}, 0
    while at + 2 < len(words) and words[at] in ("--socket", "--env"):
        name, is_set, value = words[at + 1].partition("=")
        if words[at] == "--socket":
            path = words[at + 1]
        elif name and is_set:
            variables[name] = value
        else:
            return "", {}, []
        at += 2
    rest = words[at:]
    if rest[:1] == ["--"]:
        return path, variables, rest[1:]
    return path, variables, [] if rest and rest[0].startswith("-") else rest


def _are_streams_open() -> bool:
    """Return whether standard input, output and error are open (`shared.standard_streams` opens them else)."""
    for fd in range(3):
        os.fstat(fd)
    return True


def _is_daemon_there(path: str) -> bool:
    """Return whether a daemon listens that this user may trust, as `shared.client.connection.connect` does."""
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    try:
        sock.connect(path)
        if not may_be_planted(path):
            return True
        credentials = sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, _UCRED_BYTES)
        return int.from_bytes(credentials[_UID], "little") in (0, os.geteuid())
    finally:
        sock.close()
