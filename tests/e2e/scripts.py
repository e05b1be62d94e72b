"""What actors do on their own: functions that run in the actor's process, each given its Me first."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import struct
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from shared.client import libc, realmem
from shared.uapi.mman import Map
from tests.support.actor import Fail, Leave, Me

# Ends of a process


def leave(_me: Me) -> NoReturn:
    """Return from main."""
    raise Leave


def fail(_me: Me) -> NoReturn:
    """End by an exception that nobody catches."""
    raise Fail


def send_and_end(me: Me, datagram: bytes, script: Callable[[Me], object] | None, signo: int = 0) -> None:
    """Send a long batch, wait until the table shows that it is under way, and end by a script or a signal."""
    before = me.p.sequence
    me.raw.send(datagram)
    while me.p.sequence == before:
        os.sched_yield()
    if script is not None:
        script(me)
    os.kill(os.getpid(), signo)


def send_batch(me: Me, datagram: bytes) -> None:
    """Send a datagram and leave its answer for later."""
    me.raw.send(datagram)


def wait_for(_me: Me, pid: int) -> int:
    """Wait for a child of the actor and return its status: negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# Files and threads


def open_file(_me: Me, path: str, flags: int) -> int:
    return os.open(path, flags)


def memfd(_me: Me, content: bytes, times: int = 1) -> int:
    fd = os.memfd_create("actor")
    os.write(fd, content * times)
    return fd


def truncate_file(_me: Me, fd: int, size_bytes: int) -> None:
    os.ftruncate(fd, size_bytes)


def start_thread(me: Me) -> int:
    """Start a real thread and return its id; `end_thread` ends it."""
    told: list[int] = []
    begun, over = threading.Event(), threading.Event()

    def body() -> None:
        told.append(threading.get_native_id())
        begun.set()
        over.wait()

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    begun.wait()
    me.kept["thread"] = (thread, over)
    (tid,) = told
    return tid


def end_thread(me: Me) -> None:
    thread, over = me.kept.pop("thread")
    over.set()
    thread.join()


# The machine's RAM, by hand


def walk(_me: Me, fd: int, cr3: int, vaddr: int) -> int:
    """Translate an address by hand: four levels of nine bits, as the processor's manual has it; -1 where none is."""
    table = cr3
    for shift in (39, 30, 21, 12):
        entry = int.from_bytes(os.pread(fd, 8, table + (vaddr >> shift & 511) * 8), "little")
        if not entry & 1:
            return -1
        table = entry & 0x000F_FFFF_FFFF_F000
        if shift in (30, 21) and entry & 1 << 7:
            return table | vaddr & (1 << shift) - 1
    return table | vaddr & 0xFFF


def read_ram(_me: Me, fd: int, at: int, length: int) -> bytes:
    return os.pread(fd, length, at)


def write_ram(_me: Me, fd: int) -> list[int]:
    """Try to write to a descriptor in four ways; return the errnos."""
    errnos = []
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    for attempt in (lambda: os.pwrite(fd, b"x", 4096), lambda: os.ftruncate(fd, 0)):
        try:
            attempt()
            errnos.append(0)
        except OSError as error:
            errnos.append(error.errno or -1)
    shared_write = libc.mmap(None, 4096, 3, 1, fd, 0)
    errnos.append(ctypes.get_errno() if shared_write == ctypes.c_void_p(-1).value else 0)
    return errnos


# The table in real memory


def map_entries(me: Me, length: int, prot: int = 3) -> int:
    """Map untouched private anonymous memory and look at it with a view that stays; return the address."""
    address = realmem.map_anonymous(length, prot)
    me.kept["view"] = realmem.view(address, length)
    return address


def read_view(me: Me) -> bytes:
    """Read the memory through the view that was made before the table was opened."""
    return bytes(me.kept["view"])


def write_real(_me: Me, address: int, value: int = 1) -> None:
    """Store a byte into real memory: where that is not allowed, the process dies of it."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.c_ubyte.from_address(address).value = value


def read_real(_me: Me, address: int, length: int) -> bytes:
    return realmem.read(address, length)


def real_mapping(_me: Me, address: int) -> str:
    """Return the permissions of the real mapping at an address, and the name of what is mapped."""
    with open("/proc/self/maps") as maps:
        for line in maps:
            fields = line.split(maxsplit=5)
            start, end = (int(bound, 16) for bound in fields[0].split("-"))
            if start <= address < end:
                return f"{fields[1]} {fields[5].strip() if len(fields) > 5 else ''}".strip()
    return ""


# A target that knows its own pages


def own_pages(me: Me, start: int, pages: int) -> list[tuple[int, int, int]]:
    """Return (vaddr, pfn, state_flags) of each page, from this process's own maps and pagemap."""
    flags = [0] * pages
    for line in me.p.read_proc("self/maps").decode().splitlines():
        bounds, _perms, _offset, _dev, inode, *_name = line.split()
        first, last = (int(bound, 16) for bound in bounds.split("-"))
        for index in range(max(0, (first - start) >> 12), min(pages, (last - start) >> 12)):
            flags[index] = 1 if int(inode) else 3
    rows = []
    for index, (word,) in enumerate(struct.iter_unpack("<Q", me.p.procread("self/pagemap", start >> 9, pages * 8))):
        mapped = word >> 63
        pfn = word & (1 << 55) - 1 if mapped else 0
        rows.append((start + index * 4096, pfn, flags[index] | mapped << 2))
    return rows


def ignore_signals(me: Me) -> None:
    """Catch SIGSEGV and SIGBUS so that the access is given up and the process goes on."""

    def give_up(_signo: int, _info: object) -> None:
        raise InterruptedError

    for signo in (signal.SIGSEGV, signal.SIGBUS):
        me.p.sigaction(signo, give_up)


# Real memory of every kind


def real_map(_me: Me, kind: str) -> int:
    """Make memory for a table of three pages: good or bad in the way that `kind` says."""
    length, page = 3 * 4096, 4096
    if kind == "too small":
        # A page without any access on either side keeps it a mapping of its own.
        return _between_guards(length - page)
    if kind in ("shared", "file", "private file"):
        fd = os.memfd_create("entries")
        os.ftruncate(fd, length)
        flags = Map.PRIVATE if kind == "private file" else Map.SHARED
        if kind == "shared":
            return libc.mmap(0, length, 3, Map.SHARED | Map.ANONYMOUS)
        return libc.mmap(0, length, 3, flags, fd)
    address = _between_guards(length)
    view = realmem.view(address, length)
    if kind == "first page written":
        view[0] = 1
    elif kind == "last page written":
        view[length - 1] = 1
    elif kind == "first page read":
        assert view[0] == 0
    elif kind == "two mappings":
        realmem.protect(address + page, page, 1)
    elif kind == "hole":
        realmem.unmap(address + page, page)
    elif kind == "unmapped":
        realmem.unmap(address, length)
    elif kind == "beside a written page":
        address = _between_guards(length + page)
        realmem.view(address, 1)[0] = 1
        return address + page
    elif kind == "merged of two":
        realmem.protect(address + page, page, 1)
        realmem.protect(address + page, page, 3)
    elif kind == "read only":
        realmem.protect(address, length, 1)
    elif kind == "none":
        realmem.protect(address, length, 0)
    else:
        assert kind == "exact"
    return address


def _between_guards(length: int) -> int:
    address = realmem.map_anonymous(length + 8192)
    realmem.protect(address, 4096, 4)
    realmem.protect(address + 4096 + length, 4096, 4)
    return address + 4096


def protect_real(_me: Me, address: int, prot: int) -> int:
    """Change the protection of a page of real memory; return 0 or the errno."""
    try:
        realmem.protect(address, 4096, prot)
    except OSError as error:
        return error.errno or -1
    return 0


def make_array(me: Me, address: int, pages: int) -> None:
    """Look at the table as a ctypes array of structures."""
    me.kept["array"] = (ctypes.c_uint64 * 3 * pages).from_address(address)


def read_array(me: Me) -> list[list[int]]:
    return [list(row) for row in me.kept["array"]]


# The sequence word


def wait_for_change(me: Me) -> None:
    """Wait until the kernel has changed the table once more since `note_sequence`, and is not changing it now."""
    before = me.kept["sequence"]
    deadline = time.monotonic() + 20
    while (now := me.p.sequence) == before or now % 2:
        assert time.monotonic() < deadline, "the table does not change"
        os.sched_yield()


def wait_for_a_change(me: Me) -> None:
    """Wait until the word differs from what `note_sequence` saw, even in the middle of a change."""
    before = me.kept["sequence"]
    deadline = time.monotonic() + 20
    while me.p.sequence == before:
        assert time.monotonic() < deadline, "the table does not change"
        os.sched_yield()


def sequence(me: Me) -> int:
    """Return the sequence word, as it lies in this process's memory."""
    return me.p.sequence


def note_sequence(me: Me) -> None:
    me.kept["sequence"] = me.p.sequence


def hang_up(me: Me) -> None:
    """End the connection and nothing else: the table stays mapped."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), me.p.fileno())


def is_alive(_me: Me) -> bool:
    """Answer that this process lives."""
    return True


def batch_of_loads(me: Me, addresses: list[int]) -> None:
    with me.p.batch() as batch:
        for address in addresses:
            batch.load(address, 1)
