"""execve: how argv, envp and the program's name travel; tests/task has what becomes of them."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator

import pytest

from kerneld.fs.open_file import is_in_memory
from kerneld.mm.calls.access import read_remote_vm
from shared.client.execve import memory_file
from shared.uapi.auxvec import At
from shared.uapi.syscalls import Exec, Nr
from tests.support.programs import Program


@pytest.fixture
def true_fd() -> Iterator[int]:
    fd = os.open("/bin/true", os.O_RDONLY)
    yield fd
    os.close(fd)


def cmdline(program: Program) -> bytes:
    return program.answer(Nr.PROCREAD, 0, 65536, data=b"self/cmdline").data


class TestExecveStrings:
    """How argv, envp and the name travel: counted, or in a memory file."""

    def execve(self, program: Program, fds: list[int], data: bytes = b"", *counts: int) -> int:
        return program.call(Nr.EXECVE, 1, 1, 1, *counts, data=data, fds=fds)

    def test_counted_ones_may_be_empty(self, program: Program, true_fd: int) -> None:
        data = b"a\0\0\0E=1\0\0./link\0"
        assert self.execve(program, [true_fd], data, Exec.COUNTED, 3, 2) == 0
        assert cmdline(program) == b"a\0\0\0"
        assert program.mm.env_end - program.mm.env_start == 5
        assert program.process.comm == "link"

    @pytest.mark.parametrize(("argc", "envc"), [(0, 0), (2, 0), (0, 2), (1 << 10, 0)])
    def test_not_as_many_as_is_said(self, program: Program, true_fd: int, argc: int, envc: int) -> None:
        assert self.execve(program, [true_fd], b"a\0name\0", Exec.COUNTED, argc, envc) == -errno.EFAULT
        assert self.execve(program, [true_fd], b"", Exec.COUNTED, argc, envc) == -errno.EFAULT
        assert self.execve(program, [true_fd], b"a\0name", Exec.COUNTED, 1, 0) == -errno.EFAULT

    def test_more_than_any_limit(self, program: Program, true_fd: int) -> None:
        for argc, envc in ((1 << 20, 0), (0, (1 << 64) - 1)):
            assert self.execve(program, [true_fd], b"a\0name\0", Exec.COUNTED, argc, envc) == -errno.E2BIG

    @pytest.mark.parametrize(("given", "expected"), [((0x6000, 4096), [(33, 0x6000), (51, 4096)]), ((0, 0), [])])
    def test_entries_of_the_hosts_auxiliary_vector(
        self, program: Program, true_fd: int, given: tuple[int, int], expected: list[tuple[int, int]]
    ) -> None:
        flags = Exec.COUNTED | Exec.AUXV
        assert program.call(Nr.EXECVE, 0, *given, flags, 1, 0, data=b"a\0name\0", fds=[true_fd]) == 0
        # argc, argv and its end, the end of envp, then the pairs.
        words = struct.unpack("<24Q", read_remote_vm(program.mm, program.mm.start_stack, 192))
        pairs = list(zip(words[4::2], words[5::2], strict=True))
        assert [pair for pair in pairs if pair[0] in (At.SYSINFO_EHDR, At.MINSIGSTKSZ)] == expected

    def test_flags_that_are_none(self, program: Program, true_fd: int) -> None:
        assert self.execve(program, [true_fd], b"a\0name\0", 64, 1, 0) == -errno.EINVAL

    def test_a_check_executes_nothing(self, program: Program, true_fd: int) -> None:
        """The second descriptor stands for what PT_INTERP names: one that is no program, one that may not run, none."""
        before = cmdline(program)
        none = memory_file(b"no program")
        try:
            os.fchmod(none, 0o755)
            given = Exec.CHECK | Exec.INTERPRETER_FD
            assert self.execve(program, [true_fd], b"", Exec.CHECK) == 0
            assert self.execve(program, [true_fd, true_fd], b"", given) == 0
            assert self.execve(program, [true_fd, none], b"", given) == -errno.EIO
            assert self.execve(program, [none], b"", Exec.CHECK) == -errno.ENOEXEC
            os.fchmod(none, 0o644)
            assert self.execve(program, [true_fd, none], b"", given) == -errno.EACCES
            assert self.execve(program, [true_fd], b"", given) == -errno.EBADF
        finally:
            os.close(none)
        assert cmdline(program) == before

    @pytest.mark.parametrize(("length", "code"), [(131_071, 0), (131_072, -errno.E2BIG)])
    def test_the_longest_argument_comes_in_a_file(self, program: Program, true_fd: int, length: int, code: int) -> None:
        """MAX_ARG_STRLEN includes the NUL: fs/exec.c:valid_arg_len()."""
        fd = memory_file(b"x" * length + b"\0name\0")
        try:
            flags = Exec.COUNTED | Exec.STRINGS_FD
            assert self.execve(program, [true_fd, fd], b"", flags, 1, 0) == code
        finally:
            os.close(fd)
        if not code:
            assert program.mm.arg_end - program.mm.arg_start == length + 1

    def test_a_file_that_is_none(self, program: Program, true_fd: int, fd: int) -> None:
        for fds in ([true_fd], [true_fd, fd] if not is_in_memory(fd) else [true_fd]):
            assert self.execve(program, fds, b"", Exec.STRINGS_FD) == -errno.EBADF

    def test_a_file_that_is_too_long(self, program: Program, true_fd: int) -> None:
        fd = os.memfd_create("strings")
        os.ftruncate(fd, 1 << 40)
        assert self.execve(program, [true_fd, fd], b"", Exec.STRINGS_FD) == -errno.E2BIG
        os.close(fd)
