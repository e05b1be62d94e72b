"""The shadow table in the opener's real memory: mapped at entries, read-only, and private again after close."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.client import KerneldError, KerneldGone, Process, libc, realmem
from shared.uapi.mman import Map, Mremap, Prot
from shared.uapi.shadowpt import SHADOW_PTE, USER_SHADOW_PT, table_bytes
from shared.uapi.syscalls import Nr
from shared.wire import Request
from tests.shared.attached import Attached
from tests.shared.fake_kerneld import Hangup, Said, Script, settled_fds

START, END = 0x10_0000, 0x10_0000 + 300 * 4096
BYTES = table_bytes(START, END)


class Tables:
    """Opens tables made of memory files, as the kernel does; `entries` and `sequence` are the kernel's side."""

    def __init__(self, end: int = END, sent: int = 2) -> None:
        self.end = end
        self.sent = sent
        self.name = f"kernel-{id(self):x}"
        self.fds = [os.memfd_create(f"{self.name}-{name}") for name in ("table", "sequence")]
        for fd, size in zip(self.fds, (BYTES, 4096), strict=True):
            os.ftruncate(fd, size)
        self.entries, self.sequence = (mmap.mmap(fd, 0) for fd in self.fds)
        self.gone = False
        self.opened: list[Request] = []

    def __call__(self, request: Request, _fds: list[int]) -> Said:
        if self.gone:
            raise Hangup
        if request.nr != Nr.SHADOWPT_OPEN:
            return Said(0)
        self.opened.append(request)
        start, _end, entries = USER_SHADOW_PT.unpack(request.data)
        if start > self.end:
            return Said(-errno.EINVAL)
        updated = USER_SHADOW_PT.pack(start, self.end, entries)
        read_only = tuple(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY) for fd in self.fds[: self.sent])
        return Said(0, updated, fds=read_only)

    def set(self, index: int, pfn: int) -> None:
        SHADOW_PTE.pack_into(self.entries, index * SHADOW_PTE.size, START + index * 4096, pfn, 7)


def _open(process: Process, prot: int = Prot.READ | Prot.WRITE) -> int:
    entries = realmem.map_anonymous(BYTES, prot)
    assert process.shadowpt_open(42, START, END + 4096, entries) == (START, END)
    return entries


def _maps_of(address: int) -> list[str]:
    with open("/proc/self/maps", encoding="utf-8") as maps:
        for line in maps:
            low, high = (int(bound, 16) for bound in line.split()[0].split("-"))
            if low <= address < high:
                return line.split()
    return []


def test_a_pointer_made_before_open_shows_the_kernels_table_after_it(attached: Attached) -> None:
    tables = Tables()
    fake, process = attached(tables)
    entries = realmem.map_anonymous(BYTES)
    pointer = ctypes.cast(entries, ctypes.POINTER(ctypes.c_uint64))
    view = realmem.view(entries, BYTES)
    tables.set(299, 5)
    assert process.shadowpt_open(42, START, END + 4096, entries) == (START, END)
    assert pointer[299 * 3 + 1] == 5
    tables.set(0, 0x1234)
    assert SHADOW_PTE.unpack_from(view, 0) == (START, 0x1234, 7)
    request = tables.opened[0]
    assert (request.args[0], request.args[2]) == (42, 0)
    assert request.args[1]
    assert request.data == struct.pack("<QQQ", START, END + 4096, entries)
    assert _maps_of(entries)[1] == "r--s"
    assert fake.requests == [request]


@pytest.mark.parametrize(
    ("prot", "shown"), [(Prot.READ | Prot.WRITE, "rw-p"), (Prot.READ, "r--p"), (Prot.NONE, "---p")]
)
def test_close_gives_fresh_private_memory_with_the_old_protection(attached: Attached, prot: Prot, shown: str) -> None:
    tables = Tables()
    fake, process = attached(tables)
    entries = _open(process, prot)
    tables.set(0, 9)
    process.shadowpt_close()
    assert fake.requests[-1].nr == Nr.SHADOWPT_CLOSE
    assert _maps_of(entries)[1] == shown
    if prot & Prot.READ:
        assert realmem.read(entries, BYTES) == bytes(BYTES)
    if prot & Prot.WRITE:
        realmem.view(entries, BYTES)[0] = 1
        assert tables.entries[8] == 9
    maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    assert [line for line in maps if "r--s" in line and tables.name in line] == []
    _open(process, prot)
    if prot:
        assert len(process.snapshot()) == 300 * SHADOW_PTE.size
    else:
        with pytest.raises(OSError, match="Bad address"):
            process.snapshot()


def test_memory_that_may_not_be_read_may_not_be_while_the_table_is_open(attached: Attached) -> None:
    _fake, process = attached(Tables())
    entries = _open(process, Prot.NONE)
    assert _maps_of(entries)[1] == "---s"


def test_shared_memory_is_shared_again(attached: Attached) -> None:
    _fake, process = attached(Tables())
    entries = libc.mmap(0, BYTES, Prot.READ | Prot.WRITE, Map.SHARED | Map.ANONYMOUS)
    process.shadowpt_open(42, START, END + 4096, entries)
    process.shadowpt_close()
    assert _maps_of(entries)[1] == "rw-s"
    realmem.unmap(entries, BYTES)


def test_every_page_of_the_table_is_mapped_at_once(attached: Attached) -> None:
    _fake, process = attached(Tables())
    entries = _open(process)
    with open("/proc/self/pagemap", "rb") as pagemap:
        pagemap.seek(entries // 4096 * 8)
        words = struct.unpack(f"<{BYTES // 4096}Q", pagemap.read(BYTES // 4096 * 8))
    assert all(word >> 63 for word in words)


def test_a_table_that_was_moved_is_fresh_memory_where_it_is_now(attached: Attached) -> None:
    tables = Tables()
    _fake, process = attached(tables)
    entries = _open(process)
    tables.set(0, 9)
    to = realmem.map_anonymous(BYTES, Prot.NONE)
    remap = ctypes.CDLL(None, use_errno=True).mremap
    remap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
    remap.restype = ctypes.c_void_p
    assert remap(entries, BYTES, BYTES, (Mremap.MAYMOVE | Mremap.FIXED).value, to) == to
    assert SHADOW_PTE.unpack_from(realmem.view(to, BYTES), 0) == (START, 9, 7)
    process.shadowpt_close()
    assert _maps_of(entries) == []
    assert _maps_of(to)[1] == "rw-p"
    assert realmem.read(to, BYTES) == bytes(BYTES)


def test_no_descriptor_stays(attached: Attached) -> None:
    _fake, process = attached(Tables())
    before = settled_fds(process)
    _open(process)
    assert settled_fds(process) == before


def test_a_refused_open_leaves_the_memory_alone(attached: Attached) -> None:
    _fake, process = attached(Tables())
    entries = realmem.map_anonymous(BYTES)
    for start, at in ((END + 4096, entries), (END + 4096, 0), (1 << 63, 1 << 64)):
        with pytest.raises(OSError, match="Invalid argument"):
            process.shadowpt_open(42, start, END, at)
    assert _maps_of(entries)[1] == "rw-p"
    with pytest.raises(KerneldError, match="no shadow page table"):
        process.snapshot()


@pytest.mark.parametrize("sent", [0, 1])
def test_an_open_without_its_table_is_closed_again(attached: Attached, sent: int) -> None:
    fake, process = attached(Tables(sent=sent))
    before = settled_fds(process)
    with pytest.raises(KerneldError, match="without the table"):
        process.shadowpt_open(42, START, END, realmem.map_anonymous(BYTES))
    assert fake.requests[-1].nr == Nr.SHADOWPT_CLOSE
    assert settled_fds(process) == before


def test_a_refused_close_keeps_the_table(attached: Attached) -> None:
    tables = Tables()

    def script(request: Request, fds: list[int]) -> Said:
        return Said(-errno.EPERM) if request.nr == Nr.SHADOWPT_CLOSE else tables(request, fds)

    _fake, process = attached(script)
    entries = _open(process)
    with pytest.raises(OSError, match="not permitted"):
        process.shadowpt_close()
    assert _maps_of(entries)[1] == "r--s"


def test_the_memory_is_private_again_after_kerneld_has_gone(attached: Attached) -> None:
    tables = Tables()
    _fake, process = attached(tables)
    entries = _open(process)
    tables.gone = True
    with pytest.raises(KerneldGone):
        process.shadowpt_close()
    assert _maps_of(entries)[1] == "r--s"
    process.close()
    assert _maps_of(entries)[1] == "rw-p"


def test_a_snapshot_is_one_moment(attached: Attached, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table changes under the first two copies, and during the third look the number is odd."""
    tables = Tables()
    _fake, process = attached(tables)
    _open(process)
    looks = iter(["changed", "changed", "quiet"])
    copy = realmem.read
    monkeypatch.setattr(os, "sched_yield", lambda: _set_sequence(tables, process.sequence + process.sequence % 2))

    def changing(address: int, length: int) -> bytes:
        content = copy(address, length)
        if next(looks) == "changed":
            tables.set(0, process.sequence + 100)
            _set_sequence(tables, process.sequence + 3)
        return content

    monkeypatch.setattr(realmem, "read", changing)
    snapshot = process.snapshot()
    assert len(snapshot) == 300 * SHADOW_PTE.size
    assert SHADOW_PTE.unpack_from(snapshot, 0)[1] == SHADOW_PTE.unpack_from(tables.entries, 0)[1] == 104
    assert process.sequence == 8


def _set_sequence(tables: Tables, value: int) -> None:
    struct.pack_into("<Q", tables.sequence, 0, value)


@pytest.mark.slow
def test_a_snapshot_of_a_table_that_never_rests_is_a_timeout(attached: Attached) -> None:
    tables = Tables()
    _fake, process = attached(tables)
    _open(process)
    _set_sequence(tables, 7)
    with pytest.raises(TimeoutError):
        process.snapshot()
    _set_sequence(tables, 8)
    assert process.snapshot() == bytes(300 * SHADOW_PTE.size)


def test_a_write_to_the_open_table_is_a_real_sigsegv_and_a_child_is_not_the_opener(
    attached_apart: Callable[[Script], Process],
) -> None:
    tables = Tables()
    process = attached_apart(lambda request, fds: Said(77) if request.nr == Nr.CLONE else tables(request, fds))
    entries = _open(process)
    tables.set(3, 8)
    statuses = []
    for write in (False, True):
        pid = process.fork()
        if pid == 0:
            status = 99
            try:
                inherited = realmem.view(entries, BYTES)
                if write:
                    signal.signal(signal.SIGSEGV, signal.SIG_DFL)
                    inherited[0] = 1
                assert SHADOW_PTE.unpack_from(inherited, 3 * SHADOW_PTE.size)[1] == 8
                with pytest.raises(KerneldError):
                    process.snapshot()
                process.close()
                assert _maps_of(entries)[1] == "r--s"
                status = 0
            finally:
                os._exit(status)
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    assert statuses == [0, -signal.SIGSEGV]
    assert len(process.snapshot()) == 300 * SHADOW_PTE.size
