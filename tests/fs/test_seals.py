"""Seals of memory files against writing, which come while the file is mapped: as on the host, where each is tried too.

Source: Linux v6.8 mm/memfd.c:memfd_add_seals(), mm/shmem.c:shmem_mmap(), include/linux/mm.h:seal_check_write().
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kerneld.fs.open_file import may_be_sealed
from kerneld.fs.writable_mapping import WritableMapping
from kerneld.mm.calls.fork import dup_mmap
from kerneld.mm.calls.mprotect import do_mprotect
from kerneld.mm.calls.mremap import do_mremap
from kerneld.mm.check.invariants import check_machine
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.munmap import exit_mmap
from kerneld.mm.space.writeback import do_msync
from kerneld.mm.vm_flags import VM_MAYWRITE
from shared.uapi.fcntl import F_SEAL_FUTURE_WRITE, F_SEAL_WRITE
from shared.uapi.mman import Map, Mremap, Ms, Prot
from shared.uapi.page import PAGE_SIZE
from tests.support.errors import fails
from tests.support.file_machine import FileMachine, map_file, open_descriptors, unmap

BASE = 0x10_0000_0000
PAGES = 4
LENGTH = PAGES * PAGE_SIZE
READ, RW = Prot.READ.value, (Prot.READ | Prot.WRITE).value
SHARED, PRIVATE, FIXED = Map.SHARED.value, Map.PRIVATE.value, Map.FIXED.value
MFD_ALLOW_SEALING = 2
WRITE, FUTURE_WRITE = F_SEAL_WRITE, F_SEAL_FUTURE_WRITE


@pytest.fixture(autouse=True)
def fd() -> Iterator[int]:
    made = os.memfd_create("sealed", MFD_ALLOW_SEALING)
    os.pwrite(made, b"f" * LENGTH, 0)
    yield made
    os.close(made)


def seal(fd: int, seals: int) -> int:
    """Seal as a client does, with the host's own call; return the errno."""
    try:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    except OSError as error:
        return error.errno or 0
    return 0


def map_at(
    machine: FileMachine, mm: MmStruct, fd: int, page: int, prot: int = RW, flags: int = SHARED, *, pgoff: int = 0
) -> int:
    return machine.map_fd(mm, fd, addr=BASE + page * PAGE_SIZE, prot=prot, flags=flags | FIXED, pgoff=pgoff)


def saved(fd: int, number: int = 0) -> bytes:
    return os.pread(fd, 4, number * PAGE_SIZE)


class TestNoNewMapping:
    @pytest.mark.parametrize("seals", [WRITE, FUTURE_WRITE])
    def test_is_shared_and_writable(self, machine: FileMachine, fd: int, seals: int) -> None:
        """Also where the file has been mapped, and is still, by the very same descriptor."""
        mm = machine.new_mm()
        map_at(machine, mm, fd, 0, READ, PRIVATE)
        assert seal(fd, seals) == 0
        assert fails(errno.EPERM, map_at, machine, mm, fd, 2)
        map_at(machine, mm, fd, 2, RW, PRIVATE)
        map_at(machine, mm, fd, 3, READ, SHARED)
        vma = mm.vmas.lookup(BASE + 3 * PAGE_SIZE)
        assert vma is not None
        assert not vma.vm_flags & VM_MAYWRITE
        assert fails(errno.EACCES, do_mprotect, mm, vma.start, PAGE_SIZE, RW)

    def test_and_what_it_was_to_replace_has_gone(self, machine: FileMachine, fd: int) -> None:
        """Source: Linux v6.8 mm/mmap.c:mmap_region(): the file is asked when the range has been unmapped."""
        mm = machine.new_mm()
        map_file(mm, None, LENGTH, addr=BASE, prot=RW, flags=PRIVATE | FIXED | Map.ANONYMOUS)
        assert seal(fd, FUTURE_WRITE) == 0
        assert fails(errno.EPERM, map_at, machine, mm, fd, 1)
        assert [(vma.start, vma.end) for vma in mm.vmas] == [
            (BASE, BASE + PAGE_SIZE),
            (BASE + 2 * PAGE_SIZE, BASE + LENGTH),
        ]
        reader = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
        for flags, code in ((Map.SHARED.value, errno.EACCES), (Map.SHARED.value | Map.GROWSDOWN.value, errno.EACCES)):
            assert fails(code, map_at, machine, mm, reader, 0, RW, flags)
        assert fails(errno.EINVAL, map_at, machine, mm, fd, 0, RW, SHARED | Map.GROWSDOWN.value)
        os.close(reader)
        assert mm.vmas.lookup(BASE) is not None

    def test_but_one_that_an_older_neighbour_takes_in(self, machine: FileMachine, fd: int) -> None:
        """Source: Linux v6.8 mm/mmap.c:mmap_region(): a VMA is expanded before the file is asked."""
        mm = machine.new_mm()
        map_at(machine, mm, fd, 0)
        assert seal(fd, FUTURE_WRITE) == 0
        map_at(machine, mm, fd, 1, pgoff=1)
        (vma,) = mm.vmas
        assert (vma.start, vma.end) == (BASE, BASE + 2 * PAGE_SIZE)
        assert fails(errno.EPERM, map_at, machine, mm, fd, 2, pgoff=3)

    @pytest.mark.parametrize("first", [0, 1])
    def test_read_only_ones_merge_once_they_cannot_become_writable(
        self, machine: FileMachine, fd: int, first: int
    ) -> None:
        """With what is below; with what is above where something is mapped below."""
        mm = machine.new_mm()
        assert seal(fd, FUTURE_WRITE) == 0
        map_at(machine, mm, fd, first, READ, pgoff=first)
        map_at(machine, mm, fd, 1 - first, READ, pgoff=1 - first)
        assert mm.map_count == 1 + first
        map_file(mm, None, addr=BASE - LENGTH, prot=RW, flags=PRIVATE | FIXED | Map.ANONYMOUS)
        unmap(mm, BASE, PAGE_SIZE)
        map_at(machine, mm, fd, 0, READ)
        assert mm.map_count == 2


class TestWhileItMayBeWritten:
    def test_it_cannot_be_sealed(self, machine: FileMachine, fd: int) -> None:
        mm = machine.new_mm()
        map_at(machine, mm, fd, 0, READ, PRIVATE)
        map_at(machine, mm, fd, 1, READ, SHARED)
        assert seal(fd, WRITE) == errno.EBUSY
        map_at(machine, mm, fd, 2)
        unmap(mm, BASE + PAGE_SIZE)
        assert seal(fd, WRITE) == errno.EBUSY
        do_mprotect(mm, BASE + 2 * PAGE_SIZE, PAGE_SIZE, READ)
        assert seal(fd, WRITE) == errno.EBUSY
        unmap(mm, BASE + 2 * PAGE_SIZE)
        assert seal(fd, WRITE) == 0

    def test_nor_while_a_child_has_it(self, machine: FileMachine, fd: int) -> None:
        mm = machine.new_mm()
        map_at(machine, mm, fd, 0)
        child = dup_mmap(mm)
        unmap(mm, BASE)
        assert seal(fd, WRITE) == errno.EBUSY
        exit_mmap(child)
        assert seal(fd, WRITE) == 0

    def test_nor_when_it_has_moved_or_been_cut(self, machine: FileMachine, fd: int) -> None:
        mm = machine.new_mm()
        machine.map_fd(mm, fd, LENGTH, addr=BASE, prot=RW, flags=SHARED | FIXED)
        unmap(mm, BASE + PAGE_SIZE)
        do_mremap(mm, BASE, PAGE_SIZE, PAGE_SIZE, (Mremap.MAYMOVE | Mremap.FIXED).value, BASE * 2, privileged=False)
        unmap(mm, BASE, LENGTH)
        assert seal(fd, WRITE) == errno.EBUSY
        check_machine(machine.frames, machine.mms)
        unmap(mm, BASE * 2)
        assert seal(fd, WRITE) == 0

    def test_a_mapping_that_fails_hinders_nobody(self, machine: FileMachine, fd: int) -> None:
        mm = machine.new_mm()
        assert fails(errno.EINVAL, map_at, machine, mm, fd, 0, RW, SHARED | Map.GROWSDOWN.value)
        assert seal(fd, WRITE) == 0

    def test_nobody_holds_what_cannot_be_sealed(self, machine: FileMachine) -> None:
        mm = machine.new_mm()
        plain = os.memfd_create("plain")
        assert not may_be_sealed(plain)
        os.ftruncate(plain, PAGE_SIZE)
        map_at(machine, mm, plain, 0)
        assert "memfd:plain" not in Path("/proc/self/maps").read_text()
        os.close(plain)

    def test_where_the_host_has_no_room_the_file_is_mapped_all_the_same(
        self, machine: FileMachine, fd: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        mm = machine.new_mm()

        def refuse(_fd: int) -> WritableMapping:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

        monkeypatch.setattr("kerneld.fs.inode.WritableMapping", refuse)
        map_at(machine, mm, fd, 0)
        machine.store(mm, BASE, b"free")
        assert seal(fd, WRITE) == 0

    def test_a_seal_that_comes_between_the_look_and_the_mapping(
        self, machine: FileMachine, fd: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        mm = machine.new_mm()
        assert seal(fd, WRITE) == 0
        monkeypatch.setattr("kerneld.fs.file_table.find_seals", lambda fd: 0)
        before = open_descriptors()
        assert fails(errno.EPERM, map_at, machine, mm, fd, 0)
        assert open_descriptors() == before


class TestWhatAnOlderMappingStores:
    @pytest.mark.parametrize("how", ["msync", "munmap", "exit"])
    def test_is_kept(self, machine: FileMachine, fd: int, how: str) -> None:
        mm = machine.new_mm()
        machine.map_fd(mm, fd, LENGTH, addr=BASE, prot=RW, flags=SHARED | FIXED)
        machine.store(mm, BASE, b"then")
        assert seal(fd, FUTURE_WRITE) == 0
        machine.store(mm, BASE + 3 * PAGE_SIZE, b"now!")
        if how == "msync":
            do_msync(mm, BASE, LENGTH, Ms.SYNC)
        elif how == "munmap":
            unmap(mm, BASE, LENGTH)
        else:
            machine.mms.remove(mm)
            exit_mmap(mm)
        assert (saved(fd), saved(fd, 3)) == (b"then", b"now!")

    def test_is_kept_where_others_go_on_reading(self, machine: FileMachine, fd: int) -> None:
        """The file may be sealed for good once nobody can write to it: by then it has everything."""
        mm = machine.new_mm()
        map_at(machine, mm, fd, 0)
        map_at(machine, mm, fd, 2, READ, PRIVATE, pgoff=2)
        machine.store(mm, BASE, b"last")
        unmap(mm, BASE)
        assert seal(fd, WRITE) == 0
        assert saved(fd) == b"last"

    def test_in_a_file_that_was_cut_is_lost_and_nobody_dies(self, machine: FileMachine, fd: int) -> None:
        mm = machine.new_mm()
        machine.map_fd(mm, fd, LENGTH, addr=BASE, prot=RW, flags=SHARED | FIXED)
        machine.store(mm, BASE + 2 * PAGE_SIZE, b"cut!")
        assert seal(fd, FUTURE_WRITE) == 0
        os.ftruncate(fd, PAGE_SIZE)
        do_msync(mm, BASE, LENGTH, Ms.SYNC)
        unmap(mm, BASE, LENGTH)

    def test_beyond_what_was_mapped_first(self, fd: int) -> None:
        mapping = WritableMapping(fd)
        assert seal(fd, FUTURE_WRITE) == 0
        mapping.write_at(3 * PAGE_SIZE + 2, memoryview(b"on"))
        mapping.write_at(0, memoryview(b"it"))
        assert (saved(fd), saved(fd, 3)) == (b"itff", b"ffon")
        os.ftruncate(fd, PAGE_SIZE)
        with pytest.raises(OSError, match=r".") as caught:
            mapping.write_at(2 * PAGE_SIZE, memoryview(b"no"))
        assert caught.value.errno == errno.EFAULT
        mapping.close()
        assert "memfd:sealed" not in Path("/proc/self/maps").read_text()

    def test_a_file_that_is_open_for_reading_alone(self, fd: int) -> None:
        reader = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
        with pytest.raises(PermissionError):
            WritableMapping(reader)
        os.close(reader)
