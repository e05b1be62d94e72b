"""The calling process as kerneld sees it: the face of the library, thin on purpose.

Joins the parts: the calls, the memory, the heap, the shadow table. Owns attach, fork and execve, because those
replace parts. One Process is one thread's connection; a further thread attaches with its own tid.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import NoReturn

from shared import wire
from shared.client.batch import Batch
from shared.client.errors import KerneldError, KerneldGone
from shared.client.execve import memory_file, pack_strings
from shared.client.fork import fork_attached
from shared.client.malloc import Malloc
from shared.client.memory import Memory
from shared.client.mman import MemoryCalls
from shared.client.path import default_socket_path
from shared.client.shadowpt import ShadowTable
from shared.uapi.page import PAGE_SIZE
from shared.uapi.shadowpt import Layout
from shared.uapi.syscalls import ABI_VERSION, Exec, Nr


class Process(MemoryCalls):
    """A thread of a process attached to kerneld."""

    def __init__(self, socket_path: str, tid: int, token: int) -> None:
        """Connect and attach: what `attach` does, with every argument given."""
        super().__init__(socket_path)
        self.socket_path = socket_path
        self.tid = tid
        self.mem = Memory(self)
        self._malloc = Malloc(self, self.mem)
        self._shadow = ShadowTable(self)
        try:
            self._attach(tid, token)
        except KerneldGone:
            self._connection.close()
            raise KerneldGone(
                "kerneld closed the connection at once: it has too many, or is ending; its log says"
            ) from None
        except BaseException:
            self._connection.close()
            raise

    @classmethod
    def attach(cls, socket_path: str | None = None, tid: int = 0, token: int = 0) -> Process:
        """Connect this process, or its thread `tid`, to the kerneld at `socket_path`, or the default one.

        `token` is a clone's. Raises KerneldUnavailable when there is none, KerneldGone when it lets nobody more in,
        KerneldError when it speaks another version, OSError when it refuses.
        """
        return cls(socket_path or default_socket_path(), tid, token)

    def __repr__(self) -> str:
        thread = f" thread {self.tid}" if self.tid else ""
        state = "attached to" if self._connection.is_open else "no longer attached to"
        return f"<Process {getattr(self, 'pid', '?')}{thread} {state} {self.socket_path}>"

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave kerneld: the connection ends, and memory that an open shadow table covered is private again."""
        self._connection.close()
        if os.getpid() == self._owner:
            self._shadow.restore()

    # Processes.

    def fork(self) -> int:
        """Fork the real and the simulated process; return the child's pid, or 0 in the child, which is attached.

        Raises OSError, and KerneldError when the child could not attach. Source: fork(2).
        """
        token = self.call(Nr.CLONE).ret
        return fork_attached(lambda: self._become_child(token))

    def execve(
        self, path: str, argv: Sequence[str | bytes], envp: Mapping[str, str] | Sequence[str | bytes] = ()
    ) -> None:
        """Replace the simulated program by the ELF file at `path`; the real process goes on behind it.

        The heap's book and the handlers are the old program's, and go. Raises OSError. Source: execve(2).
        """
        name = os.fsencode(path)
        strings = pack_strings(name, argv, envp)
        memory = ctypes.create_string_buffer(strings.data)
        argv_at = ctypes.addressof(memory)
        name_at = argv_at + len(strings.data) - len(name) - 1
        flags, data = Exec.COUNTED, strings.data
        fds = [os.open(path, os.O_RDONLY | os.O_CLOEXEC)]
        try:
            if not strings.fit_inline:
                fds.append(memory_file(strings.data))
                flags, data = flags | Exec.STRINGS_FD, b""
            counts = (flags.value, strings.argc, strings.envc)
            self.call(Nr.EXECVE, name_at, argv_at, argv_at, *counts, data=data, fds=fds)
        finally:
            for fd in fds:
                os.close(fd)
        self._malloc = Malloc(self, self.mem)
        self._actions.reset_caught()

    def exit(self, status: int = 0) -> NoReturn:
        """End the simulated process and the real one with it; buffered output is written. Source: exit_group(2)."""
        with contextlib.suppress(KerneldGone):
            self.syscall(Nr.EXIT_GROUP, status)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(status & 0xFF)

    def getpid(self) -> int:
        """Return the process id, as kerneld knows it."""
        return self.call(Nr.GETPID).ret

    def getppid(self) -> int:
        """Return the parent's process id."""
        return self.call(Nr.GETPPID).ret

    def gettid(self) -> int:
        """Return the thread id."""
        return self.call(Nr.GETTID).ret

    def getuid(self) -> int:
        """Return the user id."""
        return self.call(Nr.GETUID).ret

    def setuid(self, uid: int) -> None:
        """Set the user id, which drops the superuser's for good. Raises OSError(EPERM). Source: setuid(2)."""
        self.call(Nr.SETUID, uid)

    # The heap, and several requests at once.

    def malloc(self, size: int) -> int:
        """Return the address, aligned to 16, of `size` fresh bytes. Raises OSError(ENOMEM). Source: malloc(3)."""
        return self._malloc.malloc(size)

    def calloc(self, count: int, size: int) -> int:
        """Return the address of `count` times `size` zero bytes. Raises OSError(ENOMEM). Source: malloc(3)."""
        return self._malloc.calloc(count, size)

    def realloc(self, ptr: int, size: int) -> int:
        """Resize what `ptr` points at; return where it is. Raises OSError(ENOMEM), ValueError. Source: malloc(3)."""
        return self._malloc.realloc(ptr, size)

    def free(self, ptr: int) -> None:
        """Give back what malloc returned. Raises ValueError for a pointer that is not allocated. Source: malloc(3)."""
        self._malloc.free(ptr)

    def malloc_usable_size(self, ptr: int) -> int:
        """Return how many bytes may be used at `ptr`, a pointer from malloc. Source: malloc_usable_size(3)."""
        return self._malloc.usable_size(ptr)

    def batch(self) -> Batch:
        """Return a batch: `with p.batch() as b: b.store(…); b.call(…)`, and then `b.replies`."""
        return Batch(self)

    # What the machine shows of itself.

    def procread(self, path: str, offset: int = 0, length: int = wire.MAX_INLINE) -> bytes:
        """Return at most `length` bytes of a file under /proc, such as self/maps, from `offset`; b"" at its end.

        Raises OSError(ENOENT, ESRCH, EACCES, EINVAL).
        """
        return self.call(Nr.PROCREAD, offset, length, data=os.fsencode(path.removeprefix("/proc/"))).data

    def iter_proc(self, path: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield a file under /proc in pieces, as they are read: `length` bytes from `offset`, or all up to its end.

        For files that are longer than memory: pagemap has 256 GiB. Raises OSError as procread does.
        """
        end = None if length is None else offset + length
        while end is None or offset < end:
            part = self.procread(path, offset, wire.MAX_INLINE if end is None else min(wire.MAX_INLINE, end - offset))
            if not part:
                return
            yield part
            offset += len(part)

    def read_proc(self, path: str) -> bytes:
        """Return a whole file under /proc; `iter_proc` is for a long one. Raises OSError as procread does."""
        return b"".join(self.iter_proc(path))

    def ram(self, pid: int) -> tuple[int, int]:
        """Return the CR3 of process `pid` and a read-only descriptor of the machine's RAM, which the caller owns.

        Raises OSError(EPERM, ESRCH).
        """
        reply, fds = self.call_for_fds(Nr.RAM, pid)
        if len(fds) != 1:
            for fd in fds:
                os.close(fd)
            raise KerneldError("kerneld gave no RAM with its reply")
        return reply.ret, fds[0]

    # The shadow page table.

    def shadowpt_open(
        self,
        target: int,
        start: int,
        end: int,
        entries: int,
        *,
        layout: Layout = Layout.F24,
        host: bool = False,
    ) -> tuple[int, int]:
        """Open the shadow page table of [start, end) of process `target` at `entries`; return the range as updated.

        `entries` is the page-aligned address of untouched private anonymous memory of this real process, large enough
        for the table (shared.client.realmem.map_anonymous). Afterwards it is the kernel's table, read-only. With `host`
        a target that is none of kerneld's may be a real process, where kerneld allows it. Raises OSError(EPERM, EINVAL,
        EBUSY).
        """
        return self._shadow.open(target, start, end, entries, layout, host)

    def faults_open(self, target: int, dest: int, size: int, *, host: bool = False) -> None:
        """Open, in place of that table, one of the page faults of process `target`: fall 2025's first part.

        It is mapped at `dest`, memory as `shadowpt_open` wants it, `size` bytes of whole pages. Each fault of the
        target, also one that ends in SIGSEGV, stores its address there at index (vaddr % size) / 8. `shadowpt_close`
        closes it; `snapshot` copies it. Raises OSError(EPERM, EINVAL, EBUSY).
        """
        self._shadow.open(target, 0, size, dest, Layout.F25_PART1, host)

    def shadowpt_close(self) -> None:
        """Close the table; `entries` is fresh private memory again. Raises OSError(EPERM, EINVAL)."""
        self._shadow.close()

    def shadowpt_start(self) -> None:
        """Fill the table, and have it follow every change from now on. Raises OSError(EPERM, EINVAL)."""
        self.call(Nr.SHADOWPT_START)

    def shadowpt_stop(self) -> None:
        """Let the table stay as it is. Raises OSError(EPERM, EINVAL)."""
        self.call(Nr.SHADOWPT_STOP)

    def shadowpt_page_contents(self, pfn: int) -> bytes:
        """Return the 4,096 bytes of a frame that the target maps in the range. Raises OSError(EPERM, EINVAL)."""
        page = ctypes.create_string_buffer(PAGE_SIZE)
        return self.call(Nr.SHADOWPT_PAGE_CONTENTS, pfn, ctypes.addressof(page)).data

    @property
    def sequence(self) -> int:
        """The open table's sequence number now: odd while the kernel changes the table. Raises KerneldError."""
        return self._shadow.sequence

    def snapshot(self) -> bytes:
        """Return the open table's entries as they were at one moment. Raises TimeoutError, KerneldError."""
        return self._shadow.snapshot()

    def _attach(self, tid: int, token: int) -> None:
        ret = self.syscall(Nr.ATTACH, ABI_VERSION, tid, token)
        if ret == -errno.EPROTO:
            raise KerneldError(f"the kerneld at {self.socket_path} speaks another ABI than version {ABI_VERSION}")
        if ret < 0:
            raise OSError(-ret, os.strerror(-ret))
        self.pid = ret

    def _become_child(self, token: int) -> None:
        """Go on as the forked child: everything as it was, but for the connection and the parent's shadow table."""
        self._connection.close()
        self._shadow.forget()
        self.tid = 0
        self._connect(self.socket_path)
        self._attach(self.tid, token)
