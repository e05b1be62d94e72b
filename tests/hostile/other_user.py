"""A child process under another uid that runs one function and sends back what it returns.

It is forked and has then given up root, groups included; it can open nothing of the test's any more, and needs to
import nothing.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import traceback
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")
OTHER_UID, THIRD_UID = 54_321, 54_322
GROUP = 54_300
"""Of a test's daemon: --allow-group."""


def run_as(uid: int, function: Callable[[], T], groups: tuple[int, ...] = ()) -> T:
    """Return what `function` returns in a child that has become `uid`; its gid is the same number."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        try:
            _become(uid, groups)
            said = pickle.dumps((True, function()))
        except BaseException:
            said = pickle.dumps((False, traceback.format_exc()))
        theirs.sendall(said)
        os._exit(0)
    theirs.close()
    with ours, ours.makefile("rb") as reader:
        ok, value = pickle.loads(reader.read())
    os.waitpid(pid, 0)
    assert ok, value
    result: T = value
    return result


@contextlib.contextmanager
def living_as(uid: int, function: Callable[[], tuple[object, int]]) -> Iterator[tuple[int, int]]:
    """Yield the pid of a child that has become `uid`, and the number that `function` returned in it with what it keeps.

    It stays in the group that may use the test's daemon, and lives until the end of the block.
    """
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        try:
            _become(uid, (GROUP,))
            kept, number = function()
            theirs.sendall(number.to_bytes(8, "little"))
            theirs.recv(1)
            del kept
        finally:
            os._exit(0)
    theirs.close()
    with ours:
        yield pid, int.from_bytes(ours.recv(8), "little")
    os.waitpid(pid, 0)


def _become(uid: int, groups: tuple[int, ...]) -> None:
    os.setgroups(groups)
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
