"""The calling process as kerneld sees it: the public class of the library, thin on purpose.

Joins the parts: the calls, the memory, the heap, the shadow table. Owns attach, fork and execve, because these replace
parts. One Process is the connection of one thread. A further thread attaches with its own tid.
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

        `token` is the token of a clone. Raises KerneldUnavailable when there is no kerneld, KerneldGone when it accepts
        no more connections, KerneldError when it has another ABI version, and OSError when it refuses.
        """
        return cls(socket_path or default_socket_path(), tid, token)

    def __repr__(self) -> str:
        thread = f" thread {self.tid}" if self.tid else ""
        state = "attached to" if self._connection.is_open else "no longer attached to"
        return f"<Process {getattr(self, 'pid', '?')}{thread} {state} {self.socket_path}>"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the open shadow page table as a table; without one, the mappings."""
        from shared.client.notebook import maps_html, shadow_html, text_html  # noqa: PLC0415  (for notebooks alone)

        table = self._shadow.table
        if not self._connection.is_open:
            return text_html(repr(self))
        if table is not None and table.layout is not Layout.F25_PART1:
            return shadow_html(self.snapshot(), table.layout)
        return maps_html(self.read_proc(f"{self.pid}/maps").decode("utf-8", "replace"))

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave kerneld: the connection ends. Memory under an open shadow table becomes fresh private memory."""
        self._connection.close()
        if os.getpid() == self._owner:
            self._shadow.restore()

    # Processes.

    def fork(self) -> int:
        """Fork the real and the simulated process. Return the child's pid in the parent, 0 in the attached child.

        Raises OSError, and KerneldError when the child could not attach. Source: fork(2).
        """
        token = self.call(Nr.CLONE).ret
        return fork_attached(lambda: self._become_child(token))

    def execve(
        self, path: str, argv: Sequence[str | bytes], envp: Mapping[str, str] | Sequence[str | bytes] = ()
    ) -> None:
        """Replace the simulated program by the ELF file at `path`. The real process continues after this call.

        The heap's book and the handlers of the old program are dropped. Raises OSError. Source: execve(2).
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

    @property
    def is_superuser(self) -> bool:
        """Whether this program's user is kerneld's superuser: root, or the user that runs kerneld."""
        return os.geteuid() in (0, os.stat(self.socket_path).st_uid)

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
        """Set the user id. A superuser loses this privilege for good. Raises OSError(EPERM). Source: setuid(2)."""
        self.call(Nr.SETUID, uid)

    # The heap, and several requests at once.

    def malloc(self, size: int) -> int:
        """Return the address, aligned to 16, of `size` fresh bytes. Raises OSError(ENOMEM). Source: malloc(3)."""
        return self._malloc.malloc(size)

    def calloc(self, count: int, size: int) -> int:
        """Return the address of `count` times `size` zero bytes. Raises OSError(ENOMEM). Source: malloc(3)."""
        return self._malloc.calloc(count, size)

    def realloc(self, ptr: int, size: int) -> int:
        """Resize the block at `ptr` and return its address. Raises OSError(ENOMEM), ValueError. Source: malloc(3)."""
        return self._malloc.realloc(ptr, size)

    def free(self, ptr: int) -> None:
        """Free a block of malloc. Raises ValueError for a pointer that is not allocated. Source: malloc(3)."""
        self._malloc.free(ptr)

    def malloc_usable_size(self, ptr: int) -> int:
        """Return the number of usable bytes at `ptr`, a pointer from malloc. Source: malloc_usable_size(3)."""
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
        """Yield a file under /proc piece by piece: `length` bytes from `offset`, or up to the end of the file.

        For files that are larger than memory: pagemap has 256 GiB. Raises OSError as procread does.
        """
        end = None if length is None else offset + length
        while end is None or offset < end:
            part = self.procread(path, offset, wire.MAX_INLINE if end is None else min(wire.MAX_INLINE, end - offset))
            if not part:
                return
            yield part
            offset += len(part)

    def read_proc(self, path: str) -> bytes:
        """Return a whole file under /proc. Use `iter_proc` for a long file. Raises OSError as procread does."""
        return b"".join(self.iter_proc(path))

    def procwrite(self, path: str, data: bytes, offset: int = 0) -> int:
        """Write to a setting under /proc, such as sys/vm/max_map_count, and return how many bytes it has taken.

        Raises OSError(ENOENT, EPERM, EINVAL).
        """
        name = os.fsencode(path.removeprefix("/proc/"))
        return self.call(Nr.PROCWRITE, offset, len(name), data=name + data).ret

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

        `entries` is the page-aligned address of untouched anonymous memory of this real process, large enough for the
        table (shared.client.realmem.map_anonymous). After the call it is the kernel's table, read-only. With `host` the
        target may also be a real process that is not attached, if kerneld allows that. Raises OSError(EPERM, EINVAL,
        EBUSY).
        """
        return self._shadow.open(target, start, end, entries, layout, host)

    def faults_open(self, target: int, dest: int, size: int, *, host: bool = False) -> None:
        """Open a table of the page faults of process `target`, as in the first part of fall 2025.

        The table has `size` bytes, whole pages, and is mapped at `dest`, which is memory as for `shadowpt_open`. Each
        fault of the target stores its address in the table at index (vaddr % size) / 8, also a fault that ends in
        SIGSEGV. `shadowpt_close` closes the table; `snapshot` copies it. Raises OSError(EPERM, EINVAL, EBUSY).
        """
        self._shadow.open(target, 0, size, dest, Layout.F25_PART1, host)

    def shadowpt_close(self) -> None:
        """Close the table. `entries` becomes fresh private memory again. Raises OSError(EPERM, EINVAL)."""
        self._shadow.close()

    def shadowpt_start(self) -> None:
        """Fill the table. From then on it has every change. Raises OSError(EPERM, EINVAL)."""
        self.call(Nr.SHADOWPT_START)

    def shadowpt_stop(self) -> None:
        """Freeze the table: it gets no more changes. Raises OSError(EPERM, EINVAL)."""
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
        """Continue as the forked child: with a new connection, and without the parent's shadow table."""
        self._connection.close()
        self._shadow.forget()
        self.tid = 0
        self._connect(self.socket_path)
        self._attach(self.tid, token)
