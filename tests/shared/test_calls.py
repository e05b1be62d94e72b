"""What each call puts on the wire: number, arguments, inline data, descriptors; and what it makes of the reply."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shared import wire
from shared.client import Process, calls
from shared.uapi.mman import Map, Prot
from shared.uapi.resource import RLIM_INFINITY, Rlimit
from shared.uapi.syscalls import Nr
from shared.wire import Reply, Request
from tests.shared.attached import Attached
from tests.shared.fake_kerneld import Said, Script, settled_fds

PRIVATE = Map.PRIVATE | Map.ANONYMOUS


@pytest.mark.parametrize(
    ("call", "nr", "args"),
    [
        (lambda p: p.munmap(1, 2), Nr.MUNMAP, (1, 2)),
        (lambda p: p.mprotect(1, 2, 3), Nr.MPROTECT, (1, 2, 3)),
        (lambda p: p.mremap(1, 2, 3, 1, 5), Nr.MREMAP, (1, 2, 3, 1, 5)),
        (lambda p: p.madvise(1, 2, 4), Nr.MADVISE, (1, 2, 4)),
        (lambda p: p.msync(1, 2, 4), Nr.MSYNC, (1, 2, 4)),
        (lambda p: p.mlock(1, 2), Nr.MLOCK, (1, 2)),
        (lambda p: p.mlock2(1, 2, 1), Nr.MLOCK2, (1, 2, 1)),
        (lambda p: p.munlock(1, 2), Nr.MUNLOCK, (1, 2)),
        (lambda p: p.mlockall(3), Nr.MLOCKALL, (3,)),
        (lambda p: p.munlockall(), Nr.MUNLOCKALL, ()),
        (lambda p: p.setuid(7), Nr.SETUID, (7,)),
        (lambda p: p.getpid(), Nr.GETPID, ()),
        (lambda p: p.getppid(), Nr.GETPPID, ()),
        (lambda p: p.gettid(), Nr.GETTID, ()),
        (lambda p: p.getuid(), Nr.GETUID, ()),
        (lambda p: p.shadowpt_start(), Nr.SHADOWPT_START, ()),
        (lambda p: p.shadowpt_stop(), Nr.SHADOWPT_STOP, ()),
        (lambda p: p.shadowpt_close(), Nr.SHADOWPT_CLOSE, ()),
        (lambda p: p.brk(0x5000), Nr.BRK, (0x5000,)),
        (lambda p: p.mmap(0, 5, Prot.READ, PRIVATE), Nr.MMAP, (0, 5, 1, 0x22, (1 << 64) - 1, 0)),
    ],
)
def test_a_call_is_one_request(
    attached: Attached, call: Callable[[Process], object], nr: int, args: tuple[int, ...]
) -> None:
    fake, process = attached(lambda _request, _fds: Said(42))
    assert call(process) in (42, None)
    assert fake.requests == [Request(nr, (*args, *[0] * (6 - len(args))))]  # type: ignore[arg-type]


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOMEM, errno.EINVAL])
def test_raw_is_minus_errno_and_call_raises_it(attached: Attached, code: int) -> None:
    _fake, process = attached(lambda request, _fds: Said(1 if request.nr == Nr.ATTACH else -code))
    assert process.syscall(Nr.MUNMAP, 1, 2) == -code
    with pytest.raises(OSError, match=os.strerror(code)) as caught:
        process.call(Nr.MUNMAP, 1, 2)
    assert caught.value.errno == code


def test_raw_arguments_are_64_bits_whatever_their_sign(attached: Attached) -> None:
    fake, process = attached(lambda _request, _fds: Said(0))
    process.syscall(1, -1, (1 << 64) + 5, 1 << 63)
    assert fake.requests[0].args == ((1 << 64) - 1, 5, 1 << 63, 0, 0, 0)
    with pytest.raises(TypeError, match="six"):
        process.syscall(1, *range(7))
    with pytest.raises(ValueError, match="datagram"):
        process.syscall(1, data=bytes(wire.MAX_DATAGRAM))
    assert len(fake.requests) == 1


def test_call_returns_inline_data(attached: Attached) -> None:
    _fake, process = attached(lambda _request, _fds: Said(3, b"abc"))
    assert process.call(1, data=b"in") == Reply(3, 0, b"abc")


def test_mmap_passes_the_file_unless_it_is_anonymous(attached: Attached, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    seen: list[bytes] = []

    def script(request: Request, fds: list[int]) -> Said:
        if request.nr == Nr.MMAP:
            seen.append(b"".join(os.pread(fd, 99, 0) for fd in fds))
            if not request.args[3] & Map.ANONYMOUS and not fds:
                return Said(-errno.EBADF)
        return Said(0x7000)

    fake, process = attached(script)
    with path.open("rb") as file:
        assert process.mmap(0, 7, Prot.READ, Map.PRIVATE, file.fileno(), 4096) == 0x7000
        assert fake.requests[0].args == (0, 7, 1, 2, file.fileno(), 4096)
        process.mmap(0, 7, Prot.READ, PRIVATE, file.fileno())
    with pytest.raises(OSError, match="Bad file descriptor"):
        process.mmap(0, 7, Prot.READ, Map.PRIVATE)
    assert seen == [b"content", b"", b""]


def test_an_anonymous_mmap_has_no_argument_that_is_packed_the_slow_way(
    attached: Attached, monkeypatch: pytest.MonkeyPatch
) -> None:
    """-1 for no file is a number of 64 bits on the way: a negative one costs as much as the whole call."""
    fake, process = attached(lambda _request, _fds: Said(0x7000))

    def packed(*_args: object) -> bytes:
        raise AssertionError("a negative argument")

    monkeypatch.setattr(calls, "_pack", packed)
    assert process.mmap(0, 4096, Prot.READ, PRIVATE) == 0x7000
    assert fake.requests[-1].args == (0, 4096, Prot.READ, PRIVATE, (1 << 64) - 1, 0)


def test_sbrk_moves_by_an_increment_or_is_enomem(attached: Attached) -> None:
    limit = 0x9000
    breaks = [0x5000]

    def script(request: Request, _fds: list[int]) -> Said:
        if request.nr == Nr.BRK and 0x5000 <= request.args[0] <= limit:
            breaks.append(request.args[0])
        return Said(breaks[-1])

    _fake, process = attached(script)
    assert process.sbrk(0x1000) == 0x5000
    assert process.sbrk(-0x800) == 0x6000
    assert process.sbrk(0) == 0x5800
    for wrong in (0x10000, -0x10000):
        with pytest.raises(OSError, match="Cannot allocate memory"):
            process.sbrk(wrong)
    assert breaks[-1] == 0x5800


def test_prlimit_reads_and_sets(attached: Attached) -> None:
    def script(request: Request, _fds: list[int]) -> Said:
        return Said(0, struct.pack("<QQ", 8 << 20, RLIM_INFINITY) if request.nr == Nr.PRLIMIT64 else b"")

    fake, process = attached(script)
    assert process.prlimit64(0, Rlimit.STACK) == (8 << 20, RLIM_INFINITY)
    assert process.prlimit64(7, Rlimit.STACK, (1, 2)) == (8 << 20, RLIM_INFINITY)
    read, write = fake.requests
    assert (read.args[:3], read.data) == ((0, 3, 0), b"")
    assert (write.args[:2], write.data) == ((7, 3), struct.pack("<QQ", 1, 2))
    assert all(pointer for pointer in (read.args[3], write.args[2], write.args[3]))


def test_process_vm_passes_local_pieces_first(attached: Attached) -> None:
    fake, process = attached(lambda _request, _fds: Said(30))
    assert process.process_vm_readv(7, remote=[(0x1000, 30)], local=[(0x2000, 10), (0x3000, 20)]) == 30
    assert process.process_vm_writev(7, [(0x1000, 30)], [(0x2000, 30)]) == 30
    read, write = fake.requests
    assert (read.nr, write.nr) == (Nr.PROCESS_VM_READV, Nr.PROCESS_VM_WRITEV)
    assert (read.args[0], read.args[2], read.args[4], read.args[5]) == (7, 2, 1, 0)
    assert read.args[3] - read.args[1] == 32
    assert read.data == struct.pack("<6Q", 0x2000, 10, 0x3000, 20, 0x1000, 30)


def test_process_madvise_passes_the_ranges(attached: Attached) -> None:
    fake, process = attached(lambda _request, _fds: Said(8192))
    assert process.process_madvise(7, [(0x1000, 4096), (0x5000, 4096)], 20) == 8192
    (request,) = fake.requests
    assert (request.args[0], *request.args[2:5]) == (7, 2, 20, 0)
    assert request.data == struct.pack("<4Q", 0x1000, 4096, 0x5000, 4096)


def test_mincore_and_page_contents_return_the_bytes(attached: Attached) -> None:
    fake, process = attached(lambda _request, _fds: Said(0, b"\x01\x00\x01"))
    assert process.mincore(0x1000, 3 * 4096) == b"\x01\x00\x01"
    assert process.shadowpt_page_contents(77) == b"\x01\x00\x01"
    assert fake.requests[0].args[:2] == (0x1000, 3 * 4096)
    assert fake.requests[1].args[0] == 77
    assert fake.requests[0].args[2]
    assert fake.requests[1].args[1]


def test_procread_and_a_whole_file_in_pieces(attached: Attached) -> None:
    content = bytes(range(256)) * 700

    def script(request: Request, _fds: list[int]) -> Said:
        if request.nr != Nr.PROCREAD:
            return Said(1)
        if request.data != b"self/maps":
            return Said(-errno.ENOENT)
        offset, length = request.args[:2]
        part = content[offset : offset + min(length, 50_000)]
        return Said(len(part), part)

    _fake, process = attached(script)
    assert process.procread("self/maps", 5, 10) == content[5:15]
    assert process.read_proc("/proc/self/maps") == content
    with pytest.raises(OSError, match="No such file"):
        process.read_proc("nothing")


def test_execve_passes_file_argv_and_envp_and_resets_the_heap_and_handlers(attached: Attached, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(b"\x7fELF")
    seen: list[Any] = []

    def script(request: Request, fds: list[int]) -> Said:
        if request.nr == Nr.EXECVE:
            # The strings stand where the pointers say: this script runs in the caller's own memory.
            data = request.data or os.pread(fds[1], 1 << 20, 0)
            seen.append((data, os.pread(fds[0], 4, 0), ctypes.string_at(request.args[0]), *request.args[3:]))
            seen.append(ctypes.string_at(request.args[1], len(data)))
        return Said(0)

    _fake, process = attached(script)
    process.sigaction(11, lambda _signo, _info: None)
    process.sigaction(7, signal.SIG_IGN)
    heap = process._malloc
    name = os.fsencode(program)
    strings = b"program\0-x\0\0A=1\0B=2\0" + name + b"\0"
    process.execve(str(program), ["program", b"-x", ""], {"A": "1", "B": "2"})
    assert seen == [(strings, b"\x7fELF", name, 1, 3, 2), strings]
    # More than a datagram holds.
    process.execve(str(program), ["x" * wire.MAX_DATAGRAM])
    assert seen[2:] == [(b"x" * wire.MAX_DATAGRAM + b"\0" + name + b"\0", b"\x7fELF", name, 3, 1, 0), seen[2][0]]
    assert process._malloc is not heap
    assert process.sigaction(11, signal.SIG_DFL) == signal.SIG_DFL
    assert process.sigaction(7, signal.SIG_DFL) == signal.SIG_IGN


def test_a_failed_execve_changes_nothing(attached: Attached, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(b"no program")
    _fake, process = attached(lambda request, _fds: Said(-errno.ENOEXEC if request.nr == Nr.EXECVE else 0))
    heap = process._malloc
    fds = settled_fds(process)
    with pytest.raises(OSError, match="Exec format error"):
        process.execve(str(program), ["program"])
    with pytest.raises(FileNotFoundError):
        process.execve(str(tmp_path / "none"), ["none"])
    with pytest.raises(ValueError, match="NUL"):
        process.execve(str(program), ["a\0b"])
    assert process._malloc is heap
    assert settled_fds(process) == fds


def test_exit_ends_the_real_process_with_the_status(attached_apart: Callable[[Script], Process]) -> None:
    process = attached_apart(lambda _request, _fds: Said(0))
    pid = os.fork()
    if pid == 0:
        try:
            Process.attach(process.socket_path).exit(23)
        finally:
            os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 23
