"""A real mapping of a memory file, shared and writable. While it exists, the host's kernel lets nobody seal the file.

Owns the mapping. The seal F_SEAL_FUTURE_WRITE forbids write(2) and new mappings, but not older mappings: the file is
then written through this mapping. The daemon never accesses the mapping itself, because of a SIGBUS if another program
has truncated the file. The host's kernel copies the data, and answers EFAULT in this case. Answers to Linux v6.8
mm/memfd.c:memfd_add_seals() and include/linux/fs.h: mapping_deny_writable().
"""

from __future__ import annotations

import ctypes
import os

from kerneld.fs.host_mmap import MREMAP_MAYMOVE, libc_call, map_file, to_os_error
from shared.uapi.mman import Map, Prot
from shared.uapi.page import PAGE_SIZE, page_align


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_uint64), ("length", ctypes.c_uint64))


class WritableMapping:
    """The mapping of one file, from its beginning to the last byte written."""

    def __init__(self, fd: int) -> None:
        """Map the first page of a descriptor's file. Raises OSError(EPERM) if the file is sealed."""
        self._length = PAGE_SIZE
        self._addr = map_file(fd, 0, PAGE_SIZE, (Prot.READ | Prot.WRITE).value, Map.SHARED.value)

    def write_at(self, offset: int, data: memoryview) -> None:
        """Write all of `data` at `offset`. Raises OSError."""
        end = page_align(offset + len(data))
        if end > self._length:
            self._addr = to_os_error(libc_call("mremap")(self._addr, self._length, end, MREMAP_MAYMOVE))
            self._length = end
        buffer = (ctypes.c_char * len(data)).from_buffer_copy(data)
        local = _Iovec(ctypes.addressof(buffer), len(data))
        remote = _Iovec(self._addr + offset, len(data))
        done = libc_call("process_vm_writev")(os.getpid(), ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
        if to_os_error(done) != len(data):
            raise OSError(ctypes.get_errno(), "the file has become shorter")

    def close(self) -> None:
        """Unmap it."""
        libc_call("munmap")(self._addr, self._length)
