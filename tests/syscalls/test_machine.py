"""load, store, touch, procread and ram: their bounds, what is done before a signal, and who may."""

from __future__ import annotations

import errno
import os
from signal import SIGSEGV

import pytest

from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE, TASK_SIZE
from shared.uapi.signals import SI_KERNEL, SegvCode
from shared.uapi.syscalls import Access, Nr
from shared.wire import MAX_INLINE, SigInfo
from tests.support.programs import BASE, EXEC, NOBODY_FROM, NONE, READ, RW, WRITE, Program, page

END = 1 << 64


class TestBounds:
    """Arguments that no program of the processor's can have: EINVAL before anything is accessed."""

    def test_load(self, program: Program) -> None:
        program.mmap(32, at=BASE)
        assert len(program.load(BASE, MAX_INLINE)) == MAX_INLINE
        assert program.call(Nr.LOAD, BASE, MAX_INLINE + 1) == -errno.EINVAL

    def test_store(self, program: Program) -> None:
        program.mmap(32, at=BASE)
        program.store(BASE + 1, bytes(range(256)) * 256)
        assert program.load(BASE + 256, 3) == b"\xff\0\x01"
        assert program.call(Nr.STORE, BASE, MAX_INLINE + 1, data=bytes(MAX_INLINE + 1)) == -errno.EINVAL
        assert program.call(Nr.STORE, BASE, 2, data=b"x") == -errno.EINVAL
        assert program.call(Nr.STORE, BASE, 0, data=b"x") == -errno.EINVAL

    def test_touch(self, program: Program) -> None:
        program.mmap(3, at=BASE)
        for access in (3, 7, -1):
            assert program.call(Nr.TOUCH, BASE, PAGE_SIZE, access) == -errno.EINVAL
        assert program.call(Nr.TOUCH, BASE, 3 * PAGE_SIZE, Access.WRITE) == 3

    def test_nothing(self, program: Program) -> None:
        """No byte is no access, wherever."""
        for vaddr in (BASE, 0, TASK_SIZE, END - 1):
            assert program.call(Nr.LOAD, vaddr, 0) == 0
            assert program.call(Nr.STORE, vaddr, 0) == 0
            assert program.call(Nr.TOUCH, vaddr, 0, Access.FETCH) == 0


class TestUntilASignal:
    """ret is what was done before it: bytes, or pages."""

    def expect(self, program: Program, ret: int, at: int, code: int, nr: int, *args: int, data: bytes = b"") -> None:
        answer = program.answer(nr, *args, data=data)
        assert (answer.ret, answer.signo, answer.siginfo) == (ret, SIGSEGV, SigInfo(code, True, at))
        assert answer.data == b""

    def test_load(self, program: Program) -> None:
        program.mmap(1, at=BASE)
        self.expect(program, 5, page(1), SegvCode.MAPERR, Nr.LOAD, page(1) - 5, 9)

    def test_store(self, program: Program) -> None:
        program.mmap(1, at=BASE)
        program.mmap(1, READ, at=page(1))
        self.expect(program, 5, page(1), SegvCode.ACCERR, Nr.STORE, page(1) - 5, 9, data=b"123456789")

    @pytest.mark.parametrize(
        ("prot", "access"), [(NONE, Access.READ), (READ, Access.WRITE), (RW, Access.FETCH), (NONE, Access.FETCH)]
    )
    def test_touch(self, program: Program, prot: int, access: Access) -> None:
        program.mmap(2, RW | EXEC, at=BASE)
        program.mmap(2, prot, at=page(2))
        self.expect(program, 2, page(2), SegvCode.ACCERR, Nr.TOUCH, BASE, 4 * PAGE_SIZE, access)

    def test_touch_counts_pages_not_bytes(self, program: Program) -> None:
        program.mmap(3, at=BASE)
        assert program.call(Nr.TOUCH, page(1) - 1, 2, Access.WRITE) == 2
        assert program.call(Nr.TOUCH, page(2) + 9, 1, Access.READ) == 1
        assert program.in_memory(0, 3) == [1, 1, 1]

    def test_the_address_is_where_the_access_began(self, program: Program) -> None:
        self.expect(program, 0, BASE + 123, SegvCode.MAPERR, Nr.LOAD, BASE + 123, 9)

    @pytest.mark.parametrize(
        ("vaddr", "code", "at"),
        [
            (TASK_SIZE, SegvCode.MAPERR, TASK_SIZE),
            (1 << 47, SI_KERNEL, 0),
            (1 << 63, SI_KERNEL, 0),
            (END - (1 << 47), SegvCode.MAPERR, END - (1 << 47)),
            (END - 1, SegvCode.MAPERR, END - 1),
        ],
    )
    def test_addresses_that_are_no_users(self, program: Program, vaddr: int, code: int, at: int) -> None:
        """Not canonical is a general protection fault, without an address; the kernel's half is a page fault."""
        self.expect(program, 0, at, code, Nr.LOAD, vaddr, 1)

    @pytest.mark.parametrize("nr", [Nr.LOAD, Nr.STORE, Nr.TOUCH])
    def test_over_the_top_of_all_addresses(self, program: Program, nr: int) -> None:
        """It never comes to that: the page that it begins on is the kernel's."""
        data = bytes(9) if nr == Nr.STORE else b""
        self.expect(program, 0, END - 4, SegvCode.MAPERR, nr, END - 4, 9, Access.READ, data=data)

    @pytest.mark.parametrize("length", [1 << 60, END - BASE, END - BASE + 1, END - 1])
    def test_a_touch_of_any_length(self, program: Program, length: int) -> None:
        program.mmap(2, at=BASE)
        self.expect(program, 2, page(2), SegvCode.MAPERR, Nr.TOUCH, BASE, length, Access.WRITE)

    def test_memory_that_is_only_writable_can_be_loaded_once_it_is_there(self, program: Program) -> None:
        """x86 has no entry that can be written and not read; only a fault would ask the VMA, and it allows as well."""
        program.mmap(1, WRITE, at=BASE)
        assert program.load(BASE) == b"\0"


class TestProcread:
    """Views by path."""

    def read(self, program: Program, path: bytes, offset: int = 0, length: int = 65536) -> tuple[int, bytes]:
        answer = program.answer(Nr.PROCREAD, offset, length, data=path)
        return answer.ret, answer.data

    def test_bounds(self, program: Program) -> None:
        assert self.read(program, b"self/maps", length=MAX_INLINE + 1) == (-errno.EINVAL, b"")
        assert self.read(program, b"self/nothing")[0] == -errno.ENOENT
        assert self.read(program, b"\xff\xfe")[0] == -errno.ENOENT

    def test_pieces(self, program: Program) -> None:
        ret, whole = self.read(program, b"self/maps\0")
        assert ret == len(whole) > 0
        assert self.read(program, b"self/maps", 3, 5) == (5, whole[3:8])
        assert self.read(program, b"self/maps", len(whole)) == (0, b"")
        assert self.read(program, f"{program.pid}/maps".encode())[1] == whole


class TestProcwrite:
    """Settings by path."""

    def write(self, program: Program, path: bytes, data: bytes, offset: int = 0) -> int:
        return program.answer(Nr.PROCWRITE, offset, len(path), data=path + data).ret

    def test_bounds(self, root: Program) -> None:
        assert self.write(root, b"sys/vm/swappiness", bytes(MAX_INLINE + 1)) == -errno.EINVAL
        assert self.write(root, b"sys/vm/\xff", b"1") == -errno.ENOENT
        assert root.answer(Nr.PROCWRITE, 0, 1 << 63, data=b"sys/vm/swappiness").ret == 0

    def test_a_value(self, root: Program, program: Program) -> None:
        assert self.write(program, b"sys/vm/swappiness", b"9\n") == -errno.EPERM
        assert self.write(root, b"sys/vm/swappiness\0", b"9\n") == 2
        assert program.answer(Nr.PROCREAD, 0, 99, data=b"sys/vm/swappiness").data == b"9\n"


class TestRam:
    """The machine itself, for the superuser."""

    def test_who_may(self, program: Program, root: Program) -> None:
        assert program.call(Nr.RAM, program.pid) == -errno.EPERM
        assert program.call(Nr.RAM, NOBODY_FROM + 999) == -errno.EPERM
        assert root.call(Nr.RAM, NOBODY_FROM + 999) == -errno.ESRCH

    def test_what_it_is(self, program: Program, root: Program) -> None:
        program.mmap(1, at=BASE)
        program.store(BASE, b"in RAM")
        answer = root.answer(Nr.RAM, program.pid)
        (ram,) = answer.fds
        assert answer.ret == program.mm.page_table.cr3
        pfn = int(program.mm.page_table.walk.entries(BASE, page(1))[0]) >> PAGE_SHIFT & 0xFFFF_FFFF
        assert os.pread(ram, 6, pfn << PAGE_SHIFT) == b"in RAM"
        with pytest.raises(OSError, match=r"Bad file descriptor|not permitted"):
            os.pwrite(ram, b"x", 0)
        os.close(ram)
