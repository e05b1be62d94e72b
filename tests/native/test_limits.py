"""The limit of the stack, which is kerneld's, and the strings of an execve, which the host counts too."""

from __future__ import annotations

import sys

import pytest

from tests.native.inside import Inside

_EXECUTE = """
import os, resource, sys
limit, size = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_STACK, (limit, resource.RLIM_INFINITY))
name, most = "/bin/true", 100_000
size -= len(name) + 1
arguments = ["a" * most] * (size // (most + 9))
arguments.append("b" * (size - (most + 9) * len(arguments) - 9))
try:
    os.execve(name, arguments, {})
except OSError as error:
    print(os.strerror(error.errno))
"""
_KIB, _MIB = 1 << 10, 1 << 20


@pytest.mark.parametrize(
    ("limit", "room"), [(256 * _KIB, 128 * _KIB), (_MIB, 256 * _KIB), (16 * _MIB, 4 * _MIB), (-1, 5 * _MIB)]
)
def test_the_strings_of_an_execve_are_within_a_quarter(inside: Inside, limit: int, room: int) -> None:
    """A program that has less or more than its parent had. Source: Linux v6.8 fs/exec.c:bprm_stack_limits()."""
    ends = [inside.agrees([sys.executable, "-c", _EXECUTE, str(limit), str(room + over)]) for over in (0, 1)]
    assert [end.output for end in ends] == ["", "" if limit < 0 else "Argument list too long\n"]
