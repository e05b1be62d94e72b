"""Becomes the stub of `kerneld exec`, which then becomes the program. Knows no option and prints nothing.

Owns what the stub is given: docs/programs.md, and stub/start.c. Imports little: a start of a program waits for it.
"""

from __future__ import annotations

import os
import resource
import signal
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

from kerneld.commands.program import ProgramError
from shared.uapi.personality import MMAP_PAGE_ZERO

_HIDDEN_FDS = 64
"""The least number of descriptors of the stub, where the limit leaves no room for more."""
_WINDOW_FDS = 1024
"""The number of descriptors that are not the program's (descriptors.c: HIDDEN_COUNT)."""
_MOST_FDS = 32_768
"""Higher descriptors need a larger table of descriptors, and each fork copies the table."""


def launch(stub: Path, socket_path: str, define: int, program: Sequence[str], environment: Mapping[str, str]) -> None:
    """Execute the stub. `program` is the path, the name as it was given, and the arguments.

    `define` says whose calls of the shadow page table the program makes (`Semester.define`). Returns only by an
    exception: ProgramError for a limit of open files that is too small, OSError.
    """
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):
        # Python ignores these signals, and an ignored signal stays ignored across execve.
        signal.signal(ignored, signal.SIG_DFL)
    open_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    words = stub_words(socket_path, define, program, open_files, _give_up_page_zero())
    os.execve(stub, words, environment)


def _give_up_page_zero() -> int:
    """Have the host map no page at address 0 when this process executes the stub; return MMAP_PAGE_ZERO if it would.

    Hosts from v6.14 on seal that page, so that it cannot be unmapped (fs/binfmt_elf.c:load_elf_binary()).
    """
    flags = int(Path("/proc/self/personality").read_text(), 16)
    if flags & MMAP_PAGE_ZERO:
        import ctypes  # noqa: PLC0415 - it takes a millisecond, and is hardly ever needed

        ctypes.CDLL(None).personality(flags & ~MMAP_PAGE_ZERO)
    return flags & MMAP_PAGE_ZERO


def stub_words(
    socket_path: str, define: int, program: Sequence[str], open_files: tuple[int, int], personality: int = 0
) -> list[str]:
    """Return the words that the stub is executed with. `program` and `define` are as for `launch`.

    `open_files` is RLIMIT_NOFILE, soft and hard, of the process that executes it. `personality` has the flags that the
    program is to have besides those of that process. Raises ProgramError when that is too
    small.
    """
    hidden = f"{_first_hidden_fd(*open_files)}/{define}/{personality}"
    path, name, *arguments = program
    # The name that execve has, which a script's interpreter gets, is the path; argv[0] is the name that was given.
    return ["kerneld-exec", "-", socket_path, hidden, "-", "-", path, path, name, *arguments]


def check_set_user_id(path: str) -> None:
    """Raise ProgramError if the program would have another user's rights: inside it would run without them."""
    status = os.stat(path)
    is_other_user = status.st_mode & stat.S_ISUID and status.st_uid != os.geteuid()
    if is_other_user or (status.st_mode & stat.S_ISGID and status.st_gid != os.getegid()):
        raise ProgramError(f"{path} is set-user-ID, and would run inside without these rights")


def _first_hidden_fd(soft: int, hard: int) -> int:
    """Return the first descriptor of the stub: above all that the program may ever have, if the hard limit leaves room.

    A program may raise its soft limit: a server for more clients, valgrind for its own files just above the limit that
    it found. Raises ProgramError when the hard limit is too small for the stub and the program.
    """
    most = _MOST_FDS + _WINDOW_FDS
    if hard == resource.RLIM_INFINITY or hard >= most:
        return _MOST_FDS
    # Each thread has one: 64 of them would not do for a program with as many threads.
    hidden = hard - (_WINDOW_FDS if soft <= hard - _WINDOW_FDS else max(_HIDDEN_FDS, min(_WINDOW_FDS, hard // 16)))
    if hidden < _HIDDEN_FDS:
        raise ProgramError(f"the limit of {hard} open files is too small (ulimit -n)")
    return hidden
