"""The kernel of kerneld's side: one that holds the files of a program, and the pipes of its userfaultfds."""

from __future__ import annotations

import contextlib
import os

from kerneld.errors import SysError
from kerneld.mm.check.invariants import check_machine
from kerneld.mm.files.file import File
from kerneld.mm.files.filemap import AddressSpace
from kerneld.syscalls.kernel import Kernel, KernelConfig


class ProgramMachine(Kernel):
    """A kernel that holds the files of a program, mapped or not."""

    def __init__(self, config: KernelConfig) -> None:
        super().__init__(config)
        self.held: list[File] = []

    def check(self) -> None:
        """Check all invariants, if the machine is to."""
        if self.config.check_invariants:
            mappings = {*(file.mapping for file in self.held), *self.shm.mappings()}
            check_machine(self.frames, self.table.address_spaces(), mappings)
            self.shadowpt.check()

    def hold(self, fd: int) -> None:
        """Hold the file of a descriptor.

        The machine owns the descriptor now. A file that cannot be mapped is not held.
        """
        with contextlib.suppress(SysError):
            self.held.append(self.files.open_fd(fd))

    def find_held(self, fd: int) -> AddressSpace | None:
        """Return the page cache of a descriptor's file, if the file is held."""
        stat = os.fstat(fd)
        found = (file.mapping for file in self.held if (file.dev, file.ino) == (stat.st_dev, stat.st_ino))
        return next(found, None)

    def let_go(self) -> None:
        """Drop the cached pages of the held files, and release the files."""
        for file in self.held:
            file.mapping.evict()
            self.files.put_unused(file)
        self.held.clear()


class Pipes:
    """The pipes that are watched: those of userfaultfds, whose readers go at the end of a program, and of traces."""

    def __init__(self) -> None:
        self.watched: set[int] = set()

    def add(self, pipe: int) -> None:
        """Note a pipe."""
        self.watched.add(pipe)

    def remove(self, pipe: int) -> None:
        """Forget a pipe."""
        self.watched.remove(pipe)
