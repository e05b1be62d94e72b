"""Protection keys as a program sees them: faults, PKRU, executable memory; on a processor with keys and without.

What each call does was seen on Linux 6.1 and 6.12 under QEMU (-cpu max, and pku=off) with programs in C.
"""

from __future__ import annotations

import errno
from signal import SIGSEGV

import pytest

from kerneld.hw.paging import pte_pkey
from kerneld.hw.processor import INIT_PKRU
from kerneld.mm.vm_flags import VM_LOCKED
from kerneld.task.cpu import fault_ahead
from shared.uapi.mman import MLOCK_ONFAULT, Madv, Map, Mcl
from shared.uapi.page import PAGE_SIZE
from shared.uapi.signals import BusCode, SegvCode
from shared.uapi.syscalls import Access, Nr
from shared.wire import SigInfo
from tests.support.keyed_programs import AD, WD, catch, denied, has_keys, with_key
from tests.support.programs import (
    ANON,
    BASE,
    EXEC,
    NOBODY_FROM,
    NONE,
    READ,
    RW,
    SHARED,
    Program,
    iovecs,
    page,
)


class TestFaults:
    """SEGV_PKUERR, asked for before anything is faulted in."""

    @pytest.mark.parametrize("is_there", [False, True])
    def test_memory_without_access(self, program: Program, is_there: bool) -> None:
        catch(program)
        key = with_key(program, 0)
        if is_there:
            program.store(BASE, b"y")
        program.call(Nr.WRPKRU, INIT_PKRU)
        for nr in (Nr.LOAD, Nr.STORE, Nr.TOUCH):
            denied(program, BASE, key, nr)
        assert program.in_memory(0, 1) == [is_there]

    @pytest.mark.parametrize("is_there", [False, True])
    def test_memory_that_may_be_read(self, program: Program, is_there: bool) -> None:
        catch(program)
        key = with_key(program, WD)
        assert program.load(BASE) == b"\0"
        if is_there:
            program.call(Nr.WRPKRU, 0)
            program.store(BASE, b"y")
            program.call(Nr.WRPKRU, INIT_PKRU & ~(3 << 2 * key) | WD << 2 * key)
        denied(program, BASE, key, Nr.STORE)
        assert program.load(BASE) == (b"y" if is_there else b"\0")

    @pytest.mark.parametrize("prot", [NONE, READ])
    def test_the_key_is_told_of_where_the_rights_would_forbid_it_too(self, program: Program, prot: int) -> None:
        catch(program)
        denied(program, BASE, with_key(program, AD, prot), Nr.STORE)
        program.call(Nr.WRPKRU, 0)
        answer = program.answer(Nr.STORE, BASE, 1, data=b"x")
        assert answer.siginfo == SigInfo(SegvCode.ACCERR, False, BASE, 0, 0)

    def test_an_access_stops_where_the_key_does(self, program: Program) -> None:
        catch(program)
        program.mmap(3, at=BASE)
        key = program.call(Nr.PKEY_ALLOC, 0, AD)
        program.call(Nr.PKEY_MPROTECT, page(1), PAGE_SIZE, RW, key)
        pkru = program.call(Nr.RDPKRU)
        info = SigInfo(SegvCode.PKUERR, False, page(1), key, pkru)
        answer = program.answer(Nr.LOAD, page(1) - 3, 9)
        assert (answer.ret, answer.siginfo) == (3, info)
        program.call(Nr.WRPKRU, pkru)
        answer = program.answer(Nr.TOUCH, BASE, 3 * PAGE_SIZE, Access.WRITE)
        assert (answer.ret, answer.siginfo) == (1, info)
        program.call(Nr.WRPKRU, 0)
        program.touch(0, 3)

    def test_an_end_by_it(self, program: Program) -> None:
        key = with_key(program, AD)
        pkru = program.call(Nr.RDPKRU)
        answer = program.answer(Nr.LOAD, BASE, 1)
        assert answer.siginfo == SigInfo(SegvCode.PKUERR, True, BASE, key, pkru)
        assert program.process.exit_signal == SIGSEGV

    def test_no_memory_has_no_key(self, program: Program) -> None:
        catch(program)
        program.call(Nr.WRPKRU, 0xFFFF_FFFF)
        answer = program.answer(Nr.LOAD, BASE, 1)
        assert answer.siginfo == SigInfo(SegvCode.MAPERR, False, BASE, 0, 0xFFFF_FFFF)

    def test_a_stack_grows_first(self, program: Program) -> None:
        catch(program)
        program.mmap(1, RW, ANON | Map.GROWSDOWN.value, at=page(8))
        key = program.call(Nr.PKEY_ALLOC, 0, AD)
        program.call(Nr.PKEY_MPROTECT, page(8), PAGE_SIZE, RW, key)
        denied(program, page(6), key)
        vma = program.mm.vmas.lookup(page(6))
        assert vma is not None
        assert (vma.start, vma.end) == (page(6), page(9))

    def test_past_the_end_of_a_file(self, program: Program, fd: int) -> None:
        catch(program)
        assert program.mmap(3, EXEC, SHARED, at=BASE, fd=fd) == BASE
        denied(program, page(2), 1)
        answer = program.answer(Nr.TOUCH, page(2), 1, Access.FETCH)
        assert answer.siginfo == SigInfo(BusCode.ADRERR, False, page(2))

    def test_key_0_too(self, program: Program) -> None:
        """Also of pages that were accessed before, for which the processor has a quick way."""
        catch(program)
        program.mmap(1, at=BASE)
        program.store(BASE, b"x")
        program.call(Nr.WRPKRU, WD)
        assert program.load(BASE) == b"x"
        denied(program, BASE, 0, Nr.STORE)
        program.call(Nr.WRPKRU, AD)
        denied(program, BASE, 0)

    def test_stores_of_a_batch_are_not_faulted_in_ahead(self, program: Program) -> None:
        with_key(program, AD, pages=16)
        fault_ahead(program.thread, BASE, page(16))
        assert program.in_memory(0, 16) == [0] * 16


class TestExecuteOnly:
    """PROT_EXEC alone: what a program may do with it, with keys and without."""

    def test_the_processor(self, either: Program) -> None:
        catch(either)
        either.mmap(2, EXEC, at=BASE)
        assert either.answer(Nr.TOUCH, BASE, PAGE_SIZE, Access.FETCH).ret == 1
        if has_keys(either):
            for vaddr in (BASE, page(1)):
                denied(either, vaddr, 1)
                denied(either, vaddr, 1, Nr.STORE)
            assert either.in_memory(0, 2) == [1, 0]
        else:
            assert either.load(BASE, 2 * PAGE_SIZE) == bytes(2 * PAGE_SIZE)
            answer = either.answer(Nr.STORE, BASE, 1, data=b"x")
            assert answer.siginfo == SigInfo(SegvCode.ACCERR, False, BASE)

    @pytest.mark.parametrize("flags", [None, 0, MLOCK_ONFAULT])
    def test_mlock(self, either: Program, flags: int | None) -> None:
        """What lies behind it in the range is not faulted in; all of the range is locked."""
        either.mmap(3, at=BASE)
        either.call(Nr.MPROTECT, page(1), PAGE_SIZE, EXEC)
        nr = Nr.MLOCK if flags is None else Nr.MLOCK2
        fails = has_keys(either) and not flags
        assert either.call(nr, BASE, 3 * PAGE_SIZE, flags or 0) == (-errno.ENOMEM if fails else 0)
        assert [vma.vm_flags & VM_LOCKED for vma in either.mm.vmas.overlapping(BASE, page(3))] == [VM_LOCKED] * 3
        assert either.in_memory(0, 3) == ([0] * 3 if flags else [1, 0, 0] if fails else [1] * 3)

    @pytest.mark.parametrize("how", ["current", "future", "locked", "populate"])
    def test_what_only_tries(self, either: Program, how: str) -> None:
        flags = {"locked": Map.LOCKED, "populate": Map.POPULATE}.get(how, Map.FILE).value
        if how == "future":
            assert either.call(Nr.MLOCKALL, Mcl.FUTURE) == 0
        assert either.mmap(1, EXEC, ANON | flags, at=BASE) == BASE
        assert either.mmap(1, RW, ANON | flags, at=page(1)) == page(1)
        if how == "current":
            assert either.call(Nr.MLOCKALL, Mcl.CURRENT) == 0
        assert either.in_memory(0, 2) == [not has_keys(either), 1]

    def test_mremap_of_locked_memory(self, either: Program) -> None:
        either.mmap(1, EXEC, at=BASE)
        either.call(Nr.MLOCK2, BASE, PAGE_SIZE, 0)
        assert either.call(Nr.MREMAP, BASE, PAGE_SIZE, 3 * PAGE_SIZE, 0, 0) == BASE
        assert either.in_memory(0, 3) == [not has_keys(either)] * 3

    def test_locked_memory_that_becomes_writable(self, either: Program) -> None:
        """mprotect faults it in, and its key is 0 by then."""
        either.mmap(2, EXEC, at=BASE)
        either.call(Nr.MLOCK, BASE, 2 * PAGE_SIZE)
        assert either.call(Nr.MPROTECT, BASE, 2 * PAGE_SIZE, RW) == 0
        assert either.in_memory(0, 2) == [1, 1]
        either.store(BASE, b"x")

    @pytest.mark.parametrize("advice", [Madv.POPULATE_READ, Madv.POPULATE_WRITE])
    def test_populate_advice(self, either: Program, advice: Madv) -> None:
        either.mmap(1, EXEC, at=BASE)
        assert either.call(Nr.MADVISE, BASE, PAGE_SIZE, advice) == -errno.EINVAL

    @pytest.mark.parametrize("advice", [Madv.DONTNEED, Madv.COLD, Madv.PAGEOUT, Madv.FREE, Madv.WILLNEED])
    def test_other_advice(self, either: Program, advice: Madv) -> None:
        either.mmap(1, EXEC, at=BASE)
        assert either.call(Nr.MADVISE, BASE, PAGE_SIZE, advice) == 0

    @pytest.mark.parametrize("nr", [Nr.PROCESS_VM_READV, Nr.PROCESS_VM_WRITEV])
    def test_process_vm(self, either: Program, nr: int) -> None:
        """The local side is the program's own access, the remote one another's: rights count there alone."""
        either.mmap(3, at=BASE)
        either.call(Nr.MPROTECT, page(1), PAGE_SIZE, EXEC)
        local, remote = ((page(1) - 8, 16), page(2))
        copies = nr == Nr.PROCESS_VM_WRITEV and not has_keys(either)
        data = iovecs(local, (remote, 16))
        # readv writes to the local side, which nobody may; writev reads it.
        assert either.call(nr, either.pid, 1, 1, 1, 1, 0, data=data) == (16 if copies else 8)
        data = iovecs((page(1), 8), (remote, 8))
        assert either.call(nr, either.pid, 1, 1, 1, 1, 0, data=data) == (8 if copies else -errno.EFAULT)
        data = iovecs((page(2), 8), (page(1), 8))
        assert either.call(nr, either.pid, 1, 1, 1, 1, 0, data=data) == -errno.EFAULT

    def test_smaps_and_maps(self, either: Program) -> None:
        either.mmap(1, EXEC, at=BASE)
        either.mmap(1, RW, at=page(2))
        smaps = either.answer(Nr.PROCREAD, 0, 65536, data=b"self/smaps").data.decode()
        key = "ProtectionKey:         1\n" if has_keys(either) else ""
        assert f"THPeligible:           0\n{key}VmFlags: ex mr mw me" in smaps.split("1000000000-1000001000 --xp ")[1]
        assert smaps.count("ProtectionKey:") == (smaps.count("VmFlags:") if has_keys(either) else 0)


class TestKeysOfOnesOwn:
    """Who asks PKRU, and who does not."""

    def test_populate_of_memory_that_may_not_be_written(self, program: Program) -> None:
        """Populate writes private writable memory."""
        with_key(program, WD)
        assert program.call(Nr.MADVISE, BASE, PAGE_SIZE, Madv.POPULATE_WRITE) == -errno.EINVAL
        assert program.call(Nr.MLOCK, BASE, PAGE_SIZE) == -errno.ENOMEM
        assert program.call(Nr.MADVISE, BASE, PAGE_SIZE, Madv.POPULATE_READ) == 0
        assert program.in_memory(0, 1) == [1]

    def test_the_remote_side_does_not(self, program: Program) -> None:
        key = with_key(program, 0)
        program.store(BASE, b"old")
        program.mmap(1, at=page(2))
        program.store(page(2), b"new")
        program.call(Nr.WRPKRU, INIT_PKRU)
        pieces = iovecs((page(2), 3), (BASE, 3))
        assert program.call(Nr.PROCESS_VM_WRITEV, program.pid, 1, 1, 1, 1, 0, data=pieces) == 3
        pieces = iovecs((page(2) + 16, 3), (BASE, 3))
        assert program.call(Nr.PROCESS_VM_READV, program.pid, 1, 1, 1, 1, 0, data=pieces) == 3
        assert program.load(page(2) + 16, 3) == b"new"
        pieces = iovecs((BASE, 3), (page(2), 3))
        assert program.call(Nr.PROCESS_VM_READV, program.pid, 1, 1, 1, 1, 0, data=pieces) == -errno.EFAULT
        assert program.call(Nr.PROCESS_VM_WRITEV, program.pid, 1, 1, 1, 1, 0, data=pieces) == -errno.EFAULT
        assert key == 1

    def test_a_heap_that_is_locked_and_whose_key_is_denied(self, program: Program) -> None:
        """brk says nothing of it: key 0 may be denied like any other."""
        program.call(Nr.MLOCKALL, Mcl.FUTURE)
        start = program.call(Nr.BRK, 0)
        program.call(Nr.WRPKRU, AD)
        assert program.call(Nr.BRK, start + PAGE_SIZE) == start + PAGE_SIZE
        program.call(Nr.WRPKRU, 0)
        assert program.answer(Nr.MINCORE, start, PAGE_SIZE, 0).data == b"\0"


class TestCalls:
    """329 to 331, whose keys are ints."""

    def test_the_upper_half_of_a_key_is_ignored(self, program: Program) -> None:
        key = with_key(program, 0)
        assert program.call(Nr.PKEY_MPROTECT, BASE, PAGE_SIZE, READ, 5 << 32 | key) == 0
        assert program.call(Nr.PKEY_MPROTECT, BASE, PAGE_SIZE, READ, 0xFFFF_FFFF) == 0
        assert program.call(Nr.PKEY_MPROTECT, BASE, PAGE_SIZE, READ, 0xFFFF_FFFE) == -errno.EINVAL
        assert program.call(Nr.PKEY_FREE, 9 << 32 | key) == 0

    def test_without_keys(self, without: Program) -> None:
        """The first pkey_alloc takes key 0 and fails, as PKRU cannot be set; no key can be given back or named."""
        without.mmap(1, at=BASE)
        assert without.call(Nr.PKEY_ALLOC, 1, 0) == without.call(Nr.PKEY_ALLOC, 0, 4) == -errno.EINVAL
        assert [without.call(Nr.PKEY_ALLOC, 0, 0) for _ in range(3)] == [-errno.EINVAL, -errno.ENOSPC, -errno.ENOSPC]
        for key in (0, 1, 15, 16, -2):
            assert without.call(Nr.PKEY_FREE, key) == -errno.EINVAL
            assert without.call(Nr.PKEY_MPROTECT, BASE, PAGE_SIZE, READ, key) == -errno.EINVAL
            assert without.call(Nr.PKEY_MPROTECT, BASE, 0, READ, key) == 0
        assert without.call(Nr.PKEY_FREE, -1) == -errno.EINVAL
        assert without.call(Nr.PKEY_MPROTECT, BASE, PAGE_SIZE, EXEC, -1) == 0
        assert without.load(BASE) == b"\0"

    def test_a_child_without_keys_has_the_parents_map(self, without: Program) -> None:
        """Linux copies the whole of mm_struct."""
        without.call(Nr.PKEY_ALLOC, 0, 0)
        token = without.call(Nr.CLONE)
        assert token > 0
        copy = next(iter(without.kernel.table.copies_of(without.process)))
        assert copy.pkey_allocation_map == 1

    def test_entries_have_key_0_without_keys(self, without: Program) -> None:
        without.mmap(1, EXEC, at=BASE)
        without.load(BASE)
        entries = without.mm.page_table.walk.entries(BASE, page(1)).tolist()
        assert [pte_pkey(entry) for entry in entries] == [0]
        assert without.pid >= NOBODY_FROM
