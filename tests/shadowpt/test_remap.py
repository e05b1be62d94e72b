"""The check of `entries`, against this process's own real mappings."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kerneld.errors import SysError
from kerneld.shadowpt.host_maps import HostMapping, parse_mapping
from kerneld.shadowpt.remap import check_entries
from shared.uapi.page import PAGE_SIZE
from tests.support.fake_shadowpt import PROT_NONE, HostMemory

NR_PAGES = 12
LENGTH = NR_PAGES * PAGE_SIZE
PR_SET_VMA, PR_SET_VMA_ANON_NAME = 0x53564D41, 0


@pytest.fixture
def memory() -> Iterator[HostMemory]:
    made = HostMemory(NR_PAGES)
    yield made
    made.close()


def refused(entries: int, length: int = LENGTH, pid: int | None = None) -> bool:
    try:
        check_entries(os.getpid() if pid is None else pid, entries, length)
    except SysError as error:
        return error.errno == errno.EINVAL
    return False


def map_address(region: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(region))


def test_untouched_private_memory_will_do(memory: HostMemory) -> None:
    assert not refused(memory.address)
    assert not refused(memory.address + PAGE_SIZE, LENGTH - PAGE_SIZE)


@pytest.mark.parametrize("prot", [PROT_NONE, mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_EXEC])
def test_its_protection_does_not_matter(memory: HostMemory, prot: int) -> None:
    memory.protect(0, NR_PAGES, prot)
    assert not refused(memory.address)


@pytest.mark.parametrize("page", [0, 5, NR_PAGES - 1])
@pytest.mark.parametrize("write", [True, False])
def test_a_touched_page_is_refused(memory: HostMemory, page: int, write: bool) -> None:
    memory.touch(page, write)
    assert refused(memory.address)


def test_a_touched_page_behind_the_table_does_not_matter(memory: HostMemory) -> None:
    memory.touch(NR_PAGES - 1)
    assert not refused(memory.address, LENGTH - PAGE_SIZE)


@pytest.mark.parametrize("offset", [1, 8, PAGE_SIZE - 1])
def test_unaligned_is_refused(memory: HostMemory, offset: int) -> None:
    assert refused(memory.address + offset, PAGE_SIZE)


def test_too_small_is_refused(memory: HostMemory) -> None:
    assert refused(memory.address, LENGTH + PAGE_SIZE)
    assert refused(memory.address + PAGE_SIZE)


def test_two_mappings_are_refused(memory: HostMemory) -> None:
    memory.protect(6, 6, mmap.PROT_READ)
    assert refused(memory.address)
    assert not refused(memory.address, 6 * PAGE_SIZE)


@pytest.mark.parametrize("sharing", [mmap.MAP_PRIVATE, mmap.MAP_SHARED])
@pytest.mark.parametrize("name", ["", "/dev/zero"])
def test_memory_of_no_file_will_do_shared_or_not(sharing: int, name: str) -> None:
    fd = os.open(name, os.O_RDWR) if name else -1
    flags = sharing | (0 if name else mmap.MAP_ANONYMOUS)
    with mmap.mmap(fd, LENGTH, flags) as region:
        address = map_address(region)
        assert not refused(address)
        region[5 * PAGE_SIZE] = 1
        assert refused(address)
        assert not refused(address, 5 * PAGE_SIZE)
    if name:
        os.close(fd)


@pytest.mark.parametrize("name", ["file", "a name [heap]", "two\nlines 00:00 0 ", "back\\012slash", "caf\udce9\r"])
@pytest.mark.parametrize("sharing", [mmap.MAP_PRIVATE, mmap.MAP_SHARED])
def test_a_file_mapping_is_refused_whatever_its_name(tmp_path: Path, name: str, sharing: int) -> None:
    path = tmp_path / name
    path.write_bytes(bytes(LENGTH))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), LENGTH, sharing) as region:
        assert refused(map_address(region))
        # Nothing is up there, so that every line has been read; and there is memory that will do.
        assert refused(2**47 - PAGE_SIZE, PAGE_SIZE)
        untouched = HostMemory(NR_PAGES)
        assert not refused(untouched.address)
        untouched.close()


def test_the_kernels_own_mappings_are_refused() -> None:
    special = {b"[vdso]", b"[vvar]", b"[vsyscall]"}
    lines = Path("/proc/self/maps").read_bytes().split(b"\n")[:-1]
    found = [mapping for mapping in map(parse_mapping, lines) if mapping.name in special]
    assert found
    for mapping in found:
        assert not mapping.is_private_anonymous
        assert refused(mapping.start, PAGE_SIZE)


def test_untouched_heap_will_do() -> None:
    libc = ctypes.CDLL(None)
    libc.sbrk.restype = ctypes.c_void_p
    libc.sbrk.argtypes = [ctypes.c_long]
    # Never given back: malloc may have moved the break on by then.
    entries = (libc.sbrk(LENGTH + PAGE_SIZE) + PAGE_SIZE - 1) & -PAGE_SIZE
    assert not refused(entries)
    ctypes.c_char.from_address(entries).value = b"x"
    assert refused(entries)


def test_named_anonymous_memory_will_do(memory: HostMemory) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = [ctypes.c_ulong(memory.address), ctypes.c_ulong(memory.size)]
    if libc.prctl(PR_SET_VMA, ctypes.c_ulong(PR_SET_VMA_ANON_NAME), *arguments, ctypes.c_char_p(b"a 00:00 name")):
        pytest.skip("this host's kernel names no anonymous memory")
    assert not refused(memory.address)


@pytest.mark.parametrize("entries", [0, PAGE_SIZE, 2**47 - PAGE_SIZE, 2**63, 2**64 - PAGE_SIZE])
def test_addresses_where_nothing_is_are_refused(entries: int) -> None:
    assert refused(entries)


def test_a_process_that_is_gone_is_refused(memory: HostMemory) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    assert refused(memory.address, pid=child.pid)


@pytest.mark.parametrize(
    ("line", "mapping"),
    [
        (b"1000-3000 rw-p 00000000 00:00 0 ", HostMapping(0x1000, 0x3000, b"rw-p", b"00:00", 0, b"")),
        (b"1000-3000 rw-p 00000000 00:00 0", HostMapping(0x1000, 0x3000, b"rw-p", b"00:00", 0, b"")),
        (b"1000-3000 rw-p 0 00:00 0      [heap]", HostMapping(0x1000, 0x3000, b"rw-p", b"00:00", 0, b"[heap]")),
        (
            b"1000-3000 r--s 0 fe:00 77   /a  b\\012 ",
            HostMapping(0x1000, 0x3000, b"r--s", b"fe:00", 77, b"/a  b\\012 "),
        ),
    ],
)
def test_a_line_of_maps(line: bytes, mapping: HostMapping) -> None:
    assert parse_mapping(line) == mapping


@pytest.mark.parametrize(
    ("perms", "dev", "inode", "name", "verdict"),
    [
        (b"rw-p", b"00:00", 0, b"", True),
        (b"---p", b"00:00", 0, b"[stack]", True),
        (b"rw-p", b"00:00", 0, b"[heap]", True),
        (b"rw-p", b"00:00", 0, b"[anon:x]", True),
        (b"rw-p", b"00:05", 4, b"/dev/zero", True),
        (b"rw-s", b"00:01", 4, b"/dev/zero (deleted)", False),
        (b"rw-p", b"00:01", 4, b"/dev/zero (deleted)", False),
        (b"rw-p", b"00:05", 4, b"/dev/zero2", False),
        (b"rw-s", b"00:00", 0, b"", False),
        (b"rw-p", b"00:01", 0, b"", False),
        (b"rw-p", b"00:00", 9, b"", False),
        (b"rw-p", b"00:00", 0, b"[anon_shmem:x]", False),
        (b"r-xp", b"00:00", 0, b"[vdso]", False),
        (b"rw-p", b"00:00", 0, b"/dev/zero", False),
    ],
)
def test_what_counts_as_private_anonymous(perms: bytes, dev: bytes, inode: int, name: bytes, verdict: bool) -> None:
    assert HostMapping(0, PAGE_SIZE, perms, dev, inode, name).is_private_anonymous is verdict
