"""One POSIX shared-memory segment. This process writes it, and other processes can only read it.

Owns the mapping and the read-only descriptor. Knows nothing about the meaning of the bytes. Answers to shm_open(3).

Invariants: a Segment has no name, so nothing stays in /dev/shm, however a process dies. Its memory is allocated in
full, so no store here can meet a full /dev/shm (SIGBUS). This process holds no writable descriptor of it, and no
writable mapping can be made from the descriptor that it hands out.

Two users could still write. Another uid cannot open the segment again: there is no name, and the inode's mode is 0400.
But the owner (the user that runs the kernel) could change that mode, and root does not even need that: with
CAP_DAC_OVERRIDE it opens /proc/self/fd/N for writing. Both are superusers here and may debug the kernel anyway.
shm_open(3) files cannot be sealed (Linux v6.8 mm/shmem.c:__shmem_get_inode() starts them with F_SEAL_SEAL).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import secrets

import posix_ipc

from shared.uapi.mman import Map, Prot

_DIRECTORY = "/dev/shm"
_MODE_OWNER_READS = 0o400

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]


def why_no_segment() -> str:
    """Return the problem of the directory of segments in words, with its name; "" if there is none."""
    if not os.path.isdir(_DIRECTORY):
        return f"{_DIRECTORY} is missing"
    try:
        room = os.statvfs(_DIRECTORY)
    except OSError as error:
        return f"{_DIRECTORY}: {error.strerror}"
    if room.f_flag & os.ST_RDONLY or not os.access(_DIRECTORY, os.W_OK | os.X_OK):
        return f"{_DIRECTORY} may not be written to"
    if not room.f_bavail or (room.f_files and not room.f_favail):
        return f"{_DIRECTORY} is full"
    return ""


class Segment:
    """A shared-memory segment of `size_bytes`, a multiple of PAGE_SIZE, all zeros at first."""

    def __init__(self, size_bytes: int) -> None:
        """Create it, map it for writing, open it again read-only and unlink it.

        Raises OSError if the host has no memory, no room in /dev/shm or no descriptors. Then nothing is left behind.
        """
        self.size_bytes = size_bytes
        writable_fd, self._fd = _create_unlinked(size_bytes)
        try:
            self._map = map_without_descriptor(writable_fd, size_bytes)
        except BaseException:
            os.close(self._fd)
            raise
        finally:
            os.close(writable_fd)
        self.words = memoryview(self._map).cast("Q")
        """The segment as 64-bit words. Each item is written by one 8-byte store."""

    def client_fd(self) -> int:
        """Return a new read-only descriptor, which the caller closes. Raises OSError when out of descriptors."""
        return os.dup(self._fd)

    def close(self) -> None:
        """Unmap the segment and close its descriptor. Raises BufferError while anyone holds a view of `words`."""
        self.words.release()
        self._map.close()
        os.close(self._fd)


def _create_unlinked(size_bytes: int) -> tuple[int, int]:
    """Create a segment, allocate it, unlink it; return a writable and a read-only descriptor of it."""
    # By its number, whoever meets a name for the moment that it exists knows whose it is.
    name = f"/kerneld-{os.getpid()}-{secrets.token_hex(16)}"
    try:
        writable = posix_ipc.SharedMemory(name, posix_ipc.O_CREX, mode=_MODE_OWNER_READS)
        try:
            # The umask may have removed the mode bit that opening it again needs.
            os.fchmod(writable.fd, _MODE_OWNER_READS)
            os.posix_fallocate(writable.fd, 0, size_bytes)
            return writable.fd, posix_ipc.SharedMemory(name, read_only=True).fd
        except BaseException:
            writable.close_fd()
            raise
    except (posix_ipc.Error, OSError) as error:
        code = error.errno if isinstance(error, OSError) and error.errno else errno.ENOMEM
        raise OSError(code, why_no_segment() or f"no shared memory: {error}") from error
    finally:
        # What failed before is the error to report: on a file system that may only be read, unlink is an OSError.
        with contextlib.suppress(posix_ipc.Error, OSError):
            posix_ipc.unlink_shared_memory(name)


def map_without_descriptor(fd: int, size_bytes: int) -> mmap.mmap:
    """Map `fd` shared and writable into a Python mmap object that keeps no descriptor of it.

    Python's mmap keeps a duplicate of its descriptor (until trackfd in Python 3.13). An anonymous mmap object has none.
    So the file is mapped over the pages of an anonymous one, which unmaps them at its end.
    """
    owner = mmap.mmap(-1, size_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = ctypes.addressof(ctypes.c_char.from_buffer(owner))
    mapped = _libc.mmap(address, size_bytes, Prot.READ | Prot.WRITE, Map.SHARED | Map.FIXED, fd, 0)
    if mapped != address:
        error = ctypes.get_errno()
        owner.close()
        raise OSError(error, os.strerror(error))
    return owner
