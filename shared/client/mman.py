"""The memory calls as C has them: one thin method for each call, with OSError in place of -errno.

Owns nothing. Addresses and lengths are bytes in the simulated address space. Only the kernel checks arguments. Each
method raises OSError with an errno of its page in the Linux manual.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Sequence

from shared.client.calls import SystemCalls
from shared.uapi.mman import Map
from shared.uapi.page import PAGE_SHIFT, page_align
from shared.uapi.syscalls import Nr

_RLIMIT64 = struct.Struct("<QQ")
_IOVEC = struct.Struct("<QQ")
_NO_FD = (1 << 64) - 1


class MemoryCalls(SystemCalls):
    """System calls on an address space."""

    def mmap(self, addr: int, length: int, prot: int, flags: int, fd: int = -1, offset: int = 0) -> int:
        """Map `length` bytes and return their address; without MAP_ANONYMOUS, of the file `fd` from `offset`.

        Source: mmap(2).
        """
        if fd < 0:
            # Most mappings. As the kernel sees -1: a negative number would be packed the slow way.
            return self.call(Nr.MMAP, addr, length, prot, flags, _NO_FD, offset).ret
        fds = () if flags & Map.ANONYMOUS else (fd,)
        return self.call(Nr.MMAP, addr, length, prot, flags, fd, offset, fds=fds).ret

    def munmap(self, addr: int, length: int) -> None:
        """Unmap the pages of [addr, addr + length). Source: munmap(2)."""
        self.call(Nr.MUNMAP, addr, length)

    def mprotect(self, addr: int, length: int, prot: int) -> None:
        """Set the protection of the pages of [addr, addr + length). Source: mprotect(2)."""
        self.call(Nr.MPROTECT, addr, length, prot)

    def pkey_mprotect(self, addr: int, length: int, prot: int, pkey: int) -> None:
        """Set the protection and the protection key of the pages of [addr, addr + length). Source: pkey_mprotect(2)."""
        self.call(Nr.PKEY_MPROTECT, addr, length, prot, pkey)

    def pkey_alloc(self, flags: int = 0, access_rights: int = 0) -> int:
        """Allocate a protection key and return it. `access_rights` (Pkey) has the accesses that are denied to this
        thread.

        Source: pkey_alloc(2).
        """
        return self.call(Nr.PKEY_ALLOC, flags, access_rights).ret

    def pkey_free(self, pkey: int) -> None:
        """Free a protection key. Source: pkey_free(2)."""
        self.call(Nr.PKEY_FREE, pkey)

    def pkey_get(self, pkey: int) -> int:
        """Return the accesses to a key's memory that are denied to this thread (Pkey). Raises OSError(EINVAL).

        Source: pkey_get(3).
        """
        return self.rdpkru() >> 2 * _check_pkey(pkey) & 3

    def pkey_set(self, pkey: int, access_rights: int) -> None:
        """Set the accesses to a key's memory that are denied to this thread (Pkey). Raises OSError(EINVAL).

        Source: pkey_set(3).
        """
        shift = 2 * _check_pkey(pkey)
        if access_rights & ~3:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self.wrpkru(self.rdpkru() & ~(3 << shift) | access_rights << shift)

    def rdpkru(self) -> int:
        """Return the register PKRU of this thread: two bits a protection key. The instruction RDPKRU."""
        return self.call(Nr.RDPKRU).ret

    def wrpkru(self, value: int) -> None:
        """Set the register PKRU of this thread. The instruction WRPKRU."""
        self.call(Nr.WRPKRU, value)

    def userfaultfd(self, flags: int = 0) -> int:
        """Return a new userfaultfd for this address space: a real descriptor, for the caller to close.

        Messages are read from it, and it can be polled. Source: userfaultfd(2).
        """
        _, fds = self.call_for_fds(Nr.USERFAULTFD, flags)
        return fds[0]

    def ioctl(self, fd: int, command: int, record: bytes) -> tuple[int, bytes]:
        """Make an ioctl of a userfaultfd (`shared.uapi.userfaultfd`). Return 0 or -errno, and the record after it.

        Source: ioctl_userfaultfd(2).
        """
        ret, _, told = self.trap(Nr.IOCTL, (fd, command, 0), record, (fd,))
        return ret, told or record

    def mremap(self, old_addr: int, old_length: int, new_length: int, flags: int = 0, new_addr: int = 0) -> int:
        """Grow, shrink or move a mapping and return its address. Source: mremap(2)."""
        return self.call(Nr.MREMAP, old_addr, old_length, new_length, flags, new_addr).ret

    def madvise(self, addr: int, length: int, advice: int) -> None:
        """Give advice about [addr, addr + length). Source: madvise(2)."""
        self.call(Nr.MADVISE, addr, length, advice)

    def msync(self, addr: int, length: int, flags: int) -> None:
        """Write changed pages of a shared file mapping back. Source: msync(2)."""
        self.call(Nr.MSYNC, addr, length, flags)

    def mincore(self, addr: int, length: int) -> bytes:
        """Return one byte for each page of [addr, addr + length). Bit 0: the page is in memory. Source: mincore(2)."""
        vector = ctypes.create_string_buffer(max(page_align(length) >> PAGE_SHIFT, 1))
        return self.call(Nr.MINCORE, addr, length, ctypes.addressof(vector)).data

    def mlock(self, addr: int, length: int) -> None:
        """Lock the pages of [addr, addr + length) into memory. Source: mlock(2)."""
        self.call(Nr.MLOCK, addr, length)

    def mlock2(self, addr: int, length: int, flags: int) -> None:
        """Lock pages. With MLOCK_ONFAULT a page is locked when it is faulted in. Source: mlock(2)."""
        self.call(Nr.MLOCK2, addr, length, flags)

    def munlock(self, addr: int, length: int) -> None:
        """Unlock the pages of [addr, addr + length). Source: mlock(2)."""
        self.call(Nr.MUNLOCK, addr, length)

    def mlockall(self, flags: int) -> None:
        """Lock all pages, present and future as `flags` say. Source: mlock(2)."""
        self.call(Nr.MLOCKALL, flags)

    def munlockall(self) -> None:
        """Unlock all pages. Source: mlock(2)."""
        self.call(Nr.MUNLOCKALL)

    def brk(self, addr: int) -> int:
        """Move the break to `addr` and return the break after the call. brk(0) only returns it. This is the raw call.

        Source: brk(2), "C library/kernel differences".
        """
        return self.call(Nr.BRK, addr).ret

    def sbrk(self, increment: int) -> int:
        """Move the break by `increment` bytes and return the old break. Raises OSError(ENOMEM). Source: brk(2)."""
        before = self.brk(0)
        if increment and self.brk(before + increment) != before + increment:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        return before

    def prlimit64(self, pid: int, resource: int, new: tuple[int, int] | None = None) -> tuple[int, int]:
        """Return the old (soft, hard) limit, and set `new` if it is given. A `pid` of 0 is this process.

        Source: prlimit(2).
        """
        old_limit = ctypes.create_string_buffer(_RLIMIT64.size)
        if new is None:
            reply = self.call(Nr.PRLIMIT64, pid, resource, 0, ctypes.addressof(old_limit))
        else:
            packed = _RLIMIT64.pack(*new)
            new_limit = ctypes.create_string_buffer(packed, len(packed))
            pointers = (ctypes.addressof(new_limit), ctypes.addressof(old_limit))
            reply = self.call(Nr.PRLIMIT64, pid, resource, *pointers, data=packed)
        soft, hard = _RLIMIT64.unpack(reply.data)
        return soft, hard

    def process_vm_readv(
        self, pid: int, remote: Sequence[tuple[int, int]], local: Sequence[tuple[int, int]], flags: int = 0
    ) -> int:
        """Copy `remote` (address, length) pieces of process `pid` to `local` ones of this; return the bytes copied.

        Both sides are simulated memory. Source: process_vm_readv(2).
        """
        return self._process_vm(Nr.PROCESS_VM_READV, pid, remote, local, flags)

    def process_vm_writev(
        self, pid: int, remote: Sequence[tuple[int, int]], local: Sequence[tuple[int, int]], flags: int = 0
    ) -> int:
        """Copy `local` (address, length) pieces of this process to `remote` ones of `pid`; return the bytes copied.

        Both sides are simulated memory. Source: process_vm_readv(2).
        """
        return self._process_vm(Nr.PROCESS_VM_WRITEV, pid, remote, local, flags)

    def process_madvise(self, pid: int, ranges: Sequence[tuple[int, int]], advice: int, flags: int = 0) -> int:
        """Give advice about (address, length) ranges of process `pid` (not a pidfd); return the bytes advised.

        Source: process_madvise(2).
        """
        iovecs = _pack_iovecs(ranges)
        memory = ctypes.create_string_buffer(iovecs)
        pointer = ctypes.addressof(memory)
        return self.call(Nr.PROCESS_MADVISE, pid, pointer, len(ranges), advice, flags, data=iovecs).ret

    def _process_vm(
        self, nr: Nr, pid: int, remote: Sequence[tuple[int, int]], local: Sequence[tuple[int, int]], flags: int
    ) -> int:
        iovecs = _pack_iovecs(local) + _pack_iovecs(remote)
        memory = ctypes.create_string_buffer(iovecs)
        pointer = ctypes.addressof(memory)
        remote_pointer = pointer + len(local) * _IOVEC.size
        return self.call(nr, pid, pointer, len(local), remote_pointer, len(remote), flags, data=iovecs).ret


def _check_pkey(pkey: int) -> int:
    """Return `pkey` if PKRU has bits for it (0 to 15). Raises OSError(EINVAL)."""
    if not 0 <= pkey < 16:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return pkey


def _pack_iovecs(ranges: Sequence[tuple[int, int]]) -> bytes:
    return b"".join(_IOVEC.pack(address, length) for address, length in ranges)
