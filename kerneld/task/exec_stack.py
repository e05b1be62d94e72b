"""The stack of a new program: its arguments, environment and auxiliary vector.

    STACK_TOP - 8     zero
                      file name, environment strings, argument strings (upwards from arg_start: argv, envp, name)
                      "x86_64", 16 random bytes
    start_stack       argc, argv[], NULL, envp[], NULL, auxiliary vector   (16-byte aligned)
                      128 KiB more of the VMA, not touched

All of this is written through page faults. The strings may be as long as 6 MiB, so they are searched and copied in
pieces, as Linux's copy_strings() lets other tasks run and may be killed in the middle. Knows no process and no ELF
file. Answers to Linux v6.8 fs/exec.c: bprm_stack_limits(), copy_strings(), setup_arg_pages(), and
fs/binfmt_elf.c:create_elf_tables().
"""

from __future__ import annotations

import errno
import os
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kerneld.errors import SysError
from kerneld.hw.paging import PTRS_PER_TABLE, pte_pfn
from kerneld.mm.calls.mprotect import mprotect_fixup
from kerneld.mm.calls.stack import expand_stack
from kerneld.mm.fault.populate import fault_in_range
from kerneld.mm.limits import STACK_LIMIT_BYTES, Rlimits
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.overcommit import check_enough_memory
from kerneld.mm.space.pace import Pace, Steps
from kerneld.mm.space.vma import Vma
from kerneld.mm.vm_flags import VM_EXEC, VM_STACK_FLAGS
from kerneld.task.uaccess import copy_to_user
from shared.uapi.auxvec import ELF_PLATFORM, At
from shared.uapi.page import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, TASK_SIZE, Vaddr, page_align
from shared.uapi.resource import Rlimit

STACK_TOP: Vaddr = TASK_SIZE
STACK_EXPAND_BYTES = 128 << 10
"""The VMA of a new stack is larger than its contents by this size (Linux: stack_expand)."""
MAX_ARG_STRLEN = 32 * PAGE_SIZE
"""The longest argument in bytes, with its NUL."""
_ARG_MAX = 128 << 10
"""The room for arguments that a program has even with a small RLIMIT_STACK."""
Offsets = npt.NDArray[np.uint64]

_SEARCHED_BYTES = 1 << 20
"""What is searched for the ends of strings between two looks at the clock."""
_CHUNK_PAGES = 128
"""The pages that are filled between two looks at the clock, and for which one reclaim makes room."""
_WORD = 8
_RANDOM_BYTES = 16


@dataclass(frozen=True, slots=True)
class Strings:
    """argv and envp as the client sent them: one string after another, each ended by NUL."""

    data: bytes | memoryview
    argc: int
    envc: int

    @classmethod
    def of(cls, argv: Sequence[bytes], envp: Sequence[bytes] = ()) -> Strings:
        """Return these strings. None of them may hold a NUL."""
        return cls(b"".join(string + b"\0" for string in (*argv, *envp)), len(argv), len(envp))


@dataclass(frozen=True, slots=True)
class Arguments:
    """The strings of an execve, as they are to be in memory: argv and envp, then the file's name, each with its NUL."""

    parts: tuple[bytes | memoryview, ...]
    """One after the other they are all strings: long ones are not copied for the file's name."""
    starts: Offsets
    """Where each string of argv and envp begins, and then the file's name: in bytes from the first one."""
    argc: int

    @property
    def envc(self) -> int:
        """The number of strings of the environment."""
        return len(self.starts) - 1 - self.argc

    @property
    def length(self) -> int:
        """The bytes of all strings."""
        return sum(map(len, self.parts))


def pack_arguments(filename: bytes, given: Strings, rlimits: Rlimits) -> Generator[None, None, Arguments]:
    """Check the strings of an execve, and find where each begins, in pieces. An empty argv becomes one empty string.

    Raises SysError(E2BIG) for a string over 128 KiB, or if strings and pointers are larger than the limit: a quarter of
    RLIMIT_STACK, but at most 6 MiB and at least 128 KiB. Raises SysError(EFAULT) for a wrong number of strings.
    Source: Linux v6.8 fs/exec.c:bprm_stack_limits(), copy_strings(), do_execveat_common().
    """
    limit = max(min(STACK_LIMIT_BYTES // 4 * 3, rlimits.soft[Rlimit.STACK] // 4), _ARG_MAX)
    argc = max(given.argc, 1)
    room = limit - (argc + given.envc) * _WORD
    if room <= 0 or len(filename) >= MAX_ARG_STRLEN:
        raise SysError(errno.E2BIG)
    data = given.data if given.argc else b"\0" + given.data
    ends = yield from _find_ends(data)
    if len(ends) != argc + given.envc or ends[-1] + 1 != len(data):
        raise SysError(errno.EFAULT)
    starts = np.zeros(len(ends) + 1, dtype=np.uint64)
    starts[1:] = ends + 1
    if len(data) + len(filename) + 1 > room or (starts[1:] - starts[:-1]).max() > MAX_ARG_STRLEN:
        raise SysError(errno.E2BIG)
    name = filename + b"\0"
    parts = (data, name) if len(data) > _SEARCHED_BYTES else (bytes(data) + name,)
    return Arguments(parts, starts, argc)


def _find_ends(data: bytes | memoryview) -> Generator[None, None, npt.NDArray[np.int64]]:
    """Return the position of each NUL."""
    if len(data) <= _SEARCHED_BYTES:
        ends: npt.NDArray[np.int64] = (np.frombuffer(data, np.uint8) == 0).nonzero()[0]
        return ends
    pace, found = Pace(), list[npt.NDArray[np.int64]]()
    for low in range(0, len(data), _SEARCHED_BYTES):
        part = np.frombuffer(data, np.uint8, min(_SEARCHED_BYTES, len(data) - low), low)
        found.append((part == 0).nonzero()[0] + low)
        if low + len(part) < len(data) and pace.is_over():
            yield
            pace.begin()
    return np.concatenate(found)


def insert_stack(mm: MmStruct, length: int) -> Vma:
    """Insert the VMA of the stack: `length` bytes below STACK_TOP, whole pages.

    It is not soft-dirty as a whole, as other new memory is: only the pages that are written are.
    Raises SysError(ENOMEM) if overcommit refuses the memory.
    Source: Linux v6.8 mm/mmap.c:insert_vm_struct(); fs/exec.c:setup_arg_pages(), which sets the flags anew before the
    program can be seen, without the VM_SOFTDIRTY of __bprm_mm_init().
    """
    start = STACK_TOP - length
    vma = Vma(start, STACK_TOP, VM_STACK_FLAGS, start >> PAGE_SHIFT)
    check_enough_memory(mm, vma.nr_pages)
    mm.insert_vma(vma)
    return vma


def copy_strings(mm: MmStruct, arguments: Arguments) -> Steps:
    """Make the stack with the strings at its top, and note their address (mm.arg_start).

    It has the pages of the pointers to them too, which `create_elf_tables` writes. Others may run between two pieces.
    Raises SysError(E2BIG) if RLIMIT_STACK or RLIMIT_AS has no room for them, or without a frame; SysError(EFAULT) if
    the limits have no room for 128 KiB more.
    Source: Linux v6.8 fs/exec.c:copy_strings(), get_arg_page(), setup_arg_pages().
    """
    vma = insert_stack(mm, PAGE_SIZE)
    arg_start = STACK_TOP - _WORD - arguments.length
    if arg_start < vma.start:
        _expand(mm, vma, arg_start, errno.E2BIG)
    pace = Pace()
    at = arg_start
    for part in arguments.parts:
        yield from _copy(mm, vma, at, part, pace)
        at += len(part)
    limit = mm.rlimits.soft[Rlimit.STACK] & PAGE_MASK
    base = max(vma.start - STACK_EXPAND_BYTES, vma.end - limit)
    if base < vma.start:
        _expand(mm, vma, base, errno.EFAULT)
    mm.arg_start = arg_start
    yield from _fault_pointers_in(mm, vma, arguments, pace)


def setup_executable_stack(mm: MmStruct) -> None:
    """Let the program execute its stack, as its file says. Source: Linux v6.8 fs/exec.c:setup_arg_pages().

    Raises SysError(ENOMEM).
    """
    vma = mm.vmas.find(STACK_TOP - 1)
    assert vma is not None
    mprotect_fixup(mm, vma, vma.start, vma.end, vma.vm_flags | VM_EXEC)


def _copy(mm: MmStruct, vma: Vma, vaddr: Vaddr, strings: bytes | memoryview, pace: Pace) -> Steps:
    """Write to the new stack before a process uses it."""
    view, end = memoryview(strings), vaddr + len(strings)
    for page in range(vaddr & PAGE_MASK, end, _CHUNK_PAGES << PAGE_SHIFT):
        low, high = max(page, vaddr), min(page + (_CHUNK_PAGES << PAGE_SHIFT), end)
        yield from _fault_in(mm, vma, page, page_align(high), errno.E2BIG, foll_touch=True)
        # Nobody has run since: none of these pages has been reclaimed.
        _write_mapped(mm, low, view[low - vaddr : high - vaddr])
        if high < end and pace.is_over():
            yield
            pace.begin()


def _fault_pointers_in(mm: MmStruct, vma: Vma, arguments: Arguments, pace: Pace) -> Steps:
    """Fault in the pages that have nothing but pointers to strings: those of 500,000 strings are four megabytes.

    `create_elf_tables` writes them at once. Differs from Linux: the stack has grown to them before the program is
    mapped, so a segment just below it is refused with another errno.
    """
    low, end = page_align(mm.arg_start - _WORD * (len(arguments.starts) - 1)), mm.arg_start & PAGE_MASK
    if low >= end:
        return
    if low < vma.start:
        _expand(mm, vma, low, errno.EFAULT)
    for page in range(low, end, _CHUNK_PAGES << PAGE_SHIFT):
        yield from _fault_in(mm, vma, page, min(page + (_CHUNK_PAGES << PAGE_SHIFT), end), errno.EFAULT)
        if pace.is_over():
            yield
            pace.begin()


def _fault_in(mm: MmStruct, vma: Vma, start: Vaddr, end: Vaddr, code: int, *, foll_touch: bool = False) -> Steps:
    """Fault in a chunk of the stack; yield after each reclaim, and then begin the chunk again.

    Raises SysError(`code`) without a frame.
    """
    frames = mm.frames
    while not frames.make_room(end - start >> PAGE_SHIFT):
        yield
    while fault_in_range(mm, vma, start, end, True, foll_touch=foll_touch)[0] < end:
        if not frames.take_stall():
            raise SysError(code)
        yield


def _put_user(mm: MmStruct, vaddr: Vaddr, data: bytes | memoryview) -> None:
    """Write as the program would; the whole pages of long data, as the pointers to many strings, as a range.

    Raises SysError(EFAULT) if a page cannot be written.
    """
    view = memoryview(data)
    done = copy_to_user(mm, vaddr, view[: -vaddr % PAGE_SIZE])
    vma = mm.vmas.find(vaddr)
    if done and done == -vaddr % PAGE_SIZE and vma is not None:
        # What the program may do with the first page, it may do with the rest of the VMA.
        start, end = vaddr + done, min(vma.end, vaddr + len(data) & PAGE_MASK)
        if start < end:
            end = fault_in_range(mm, vma, start, end, True)[0]
            mm.pages.mark_accessed(start, end, write=True)
            _write_mapped(mm, start, view[done : end - vaddr])
            done = end - vaddr
    if copy_to_user(mm, vaddr + done, view[done:]) < len(data) - done:
        raise SysError(errno.EFAULT)


def _write_mapped(mm: MmStruct, vaddr: Vaddr, data: memoryview) -> None:
    """Write to pages that are all mapped for writing; the whole pages among them at once."""
    if not data:
        return
    ram = mm.frames.ram
    entries = mm.page_table.walk.entries(vaddr & PAGE_MASK, page_align(vaddr + len(data)))
    pfns = pte_pfn(entries).astype(np.int64)
    head = min(-vaddr % PAGE_SIZE, len(data))
    if head:
        ram.write((int(pfns[0]) << PAGE_SHIFT) + vaddr % PAGE_SIZE, data[:head])
        pfns = pfns[1:]
    tail = (len(data) - head) % PAGE_SIZE
    if tail:
        ram.write(int(pfns[-1]) << PAGE_SHIFT, data[-tail:])
        pfns = pfns[:-1]
    if len(pfns):
        rows = np.frombuffer(data[head : len(data) - tail], dtype=np.uint64)
        ram.frames_np[pfns] = rows.reshape(len(pfns), PTRS_PER_TABLE)
        ram.written[pfns] = True


def _expand(mm: MmStruct, vma: Vma, address: Vaddr, code: int) -> None:
    try:
        expand_stack(mm, vma, address)
    except SysError:
        raise SysError(code) from None


def create_elf_tables(mm: MmStruct, arguments: Arguments, auxv: Sequence[tuple[At, int]]) -> None:
    """Write the tables at a program's stack pointer, and note their addresses in the mm (arg_*, env_*, start_stack).

    `auxv` is the auxiliary vector. AT_RANDOM, AT_EXECFN and AT_PLATFORM get their addresses here.
    Raises SysError(EFAULT) if a segment has replaced the stack, the stack has no room left, or no frame is free.
    Source: Linux v6.8 fs/binfmt_elf.c:create_elf_tables().
    """
    start = mm.arg_start
    platform = ELF_PLATFORM + b"\0"
    at_platform = (start & -16) - len(platform)
    at_random = at_platform - _RANDOM_BYTES
    _put_user(mm, at_random, os.urandom(_RANDOM_BYTES) + platform)
    argc, envc = arguments.argc, arguments.envc
    mm.arg_end = mm.env_start = start + arguments.starts.item(argc)
    mm.env_end = start + arguments.starts.item(-1)
    own = {At.RANDOM: at_random, At.EXECFN: mm.env_end, At.PLATFORM: at_platform}
    vector = [word for kind, value in auxv for word in (kind, own.get(kind, value))]
    pointers = arguments.starts + start
    words = np.zeros(1 + argc + 1 + envc + 1 + len(vector), dtype=np.uint64)
    words[0] = argc
    words[1 : 1 + argc] = pointers[:argc]
    words[2 + argc : 2 + argc + envc] = pointers[argc:-1]
    words[3 + argc + envc :] = vector
    stack_pointer = (at_random - words.nbytes) & -16
    _put_user(mm, stack_pointer, words.data.cast("B"))
    mm.start_stack = stack_pointer
