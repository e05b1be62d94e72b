"""execve: makes a new address space with a program in it. On an error the old address space stays unchanged.

Owns the order of the steps. `kerneld.task.elf_map` maps segments, `kerneld.task.exec_stack` makes the stack. Knows no
socket and opens no file: the program comes as a File, and a function of the caller opens its interpreter. Answers to
Linux v6.8 fs/exec.c (do_execveat_common, exec_binprm, begin_new_exec) and fs/binfmt_elf.c:load_elf_binary(), without
randomisation of addresses.

The strings go to the new address space in pieces, before the program is mapped. Others run meanwhile, also the other
threads of the process. The new address space is the process's from the beginning (`Process.new_mms`), so whoever looks
at all of memory finds it, and it goes with the process.

Differs from Linux: some failures come after Linux's point of no return, and Linux sends SIGKILL or SIGSEGV; here they
are errnos. Scripts (#!) are ENOEXEC. There is no vdso, no vvar, no rseq, and no signal frame, so neither
AT_SYSINFO_EHDR nor AT_MINSIGSTKSZ. (A native program has all these from the host: `Binprm.host_auxv`.)
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass

from kerneld.errors import SysError
from kerneld.mm.calls.mmap import do_mmap
from kerneld.mm.files.file import File
from kerneld.mm.frames.frames import Frames
from kerneld.mm.limits import Rlimits, Sysctl
from kerneld.mm.space.ksm import ksm_execve
from kerneld.mm.space.mdwe import inherit_mdwe
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.munmap import exit_mmap
from kerneld.mm.space.vma import STACK_GUARD_GAP_BYTES
from kerneld.task.capability import CAP_IPC_LOCK
from kerneld.task.elf import PHDR_BYTES, U64_MASK, ElfImage, read_interpreter, read_program
from kerneld.task.elf_map import ELF_ET_DYN_BASE, Placement, map_interpreter, map_program
from kerneld.task.exec_stack import (
    STACK_EXPAND_BYTES,
    STACK_TOP,
    Arguments,
    Strings,
    copy_strings,
    create_elf_tables,
    insert_stack,
    pack_arguments,
    setup_executable_stack,
)
from kerneld.task.task import Cred, Process
from shared.uapi.auxvec import CLOCKS_PER_SEC, ELF_HWCAP, ELF_HWCAP2, At
from shared.uapi.mman import Map, Prot
from shared.uapi.page import PAGE_MASK, PAGE_SIZE, Vaddr, page_align
from shared.uapi.personality import ADDR_COMPAT_LAYOUT, MMAP_PAGE_ZERO
from shared.uapi.resource import Rlimit
from shared.uapi.signals import Disposition

TASK_COMM_BYTES = 15
"""The longest name of a process (Linux: TASK_COMM_LEN, less its NUL)."""
_MMAP_GAP_MIN = 128 << 20
_U64_MAX = (1 << 64) - 1
_FRESH_PROGRAM_PAGES = 5
"""The pages below the heap of a fresh process, as if it had executed a small static program."""


def fresh_mm(frames: Frames, rlimits: Rlimits, sysctl: Sysctl) -> MmStruct:
    """Return the address space of a process that attaches without a fork: an untouched stack of 132 KiB, an empty heap.

    Raises SysError(ENOMEM) without a frame for the root of the page table, or if overcommit refuses the memory.
    """
    mm = MmStruct(frames, rlimits, sysctl)
    arch_pick_mmap_layout(mm)
    try:
        insert_stack(mm, STACK_EXPAND_BYTES + PAGE_SIZE)
    except SysError:
        exit_mmap(mm)
        raise
    mm.start_stack = STACK_TOP - 16
    mm.start_brk = mm.brk = (ELF_ET_DYN_BASE & PAGE_MASK) + _FRESH_PROGRAM_PAGES * PAGE_SIZE
    return mm


def arch_pick_mmap_layout(mm: MmStruct, personality: int = 0) -> None:
    """Set the top of the mmap area. It is as far below the stack as the stack may grow, at least 128 MiB.

    With ADDR_COMPAT_LAYOUT the area has no top: addresses are searched upwards.
    Source: Linux v6.8 arch/x86/mm/mmap.c:arch_pick_mmap_layout(), mmap_base(), mmap_is_legacy().
    """
    mm.is_bottom_up = personality & ADDR_COMPAT_LAYOUT != 0
    gap = mm.rlimits.soft[Rlimit.STACK]
    if gap + STACK_GUARD_GAP_BYTES <= _U64_MAX:
        gap += STACK_GUARD_GAP_BYTES
    gap = min(max(gap, _MMAP_GAP_MIN), STACK_TOP // 6 * 5)
    mm.mmap_base = page_align(STACK_TOP - gap)


@dataclass(frozen=True, slots=True)
class Binprm:
    """The arguments of an execve (Linux: struct linux_binprm)."""

    file: File
    filename: bytes
    """The program's name as the caller gave it. It may be a link, or relative to the working directory."""
    strings: Strings
    dumpable: bool = True
    """Whether the process may read the file. If it may only execute the file, other processes of its user may not read
    its memory (Linux: would_dump())."""
    host_auxv: tuple[int, int] = (0, 0)
    """AT_SYSINFO_EHDR and AT_MINSIGSTKSZ of a native program, which the host gives it; 0: no such entry."""
    personality: int = 0
    """The flags of personality(2) of the thread that calls."""


def do_execve(process: Process, bprm: Binprm, open_interpreter: Callable[[str], File]) -> Generator[None, None, Vaddr]:
    """Replace the program of a process. Return the address of the first instruction, in the interpreter or the program.

    It yields between two pieces of the strings, never after the program has been replaced. The caller ends the other
    threads of the process.

    `open_interpreter` opens the path in PT_INTERP and raises SysError on failure. The caller owns both files and must
    hold them open until this returns: when segments replace one another, the last mapping of a file may go before its
    next mapping comes.

    Raises SysError, with nothing changed: E2BIG for too many arguments; EFAULT for a wrong number of strings; EACCES
    for a file that is not open for reading; ENOEXEC, ELIBBAD, EIO as `kerneld.task.elf` says; EINVAL, ENOMEM, EPERM,
    EEXIST, EFAULT for segments that cannot be mapped; and the errors of `open_interpreter`.
    Source: Linux v6.8 fs/exec.c:do_execveat_common(), bprm_execve().
    """
    arguments = yield from pack_arguments(bprm.filename, bprm.strings, process.rlimits)
    if not bprm.file.readable:
        raise SysError(errno.EACCES)
    mm = bprm_mm_init(process, bprm)
    try:
        yield from copy_strings(mm, arguments)
        return exec_binprm(process, bprm, mm, arguments, open_interpreter)
    except BaseException:
        # Of a process that has ended meanwhile it is gone already.
        if mm in process.new_mms:
            process.new_mms.remove(mm)
            exit_mmap(mm)
        raise


def bprm_mm_init(process: Process, bprm: Binprm) -> MmStruct:
    """Return an empty address space for the new program; the process has it. Raises SysError(ENOMEM).

    Source: Linux v6.8 fs/exec.c:bprm_mm_init().
    """
    old = process.live_mm
    mm = MmStruct(old.frames, old.rlimits, old.sysctl)
    mm.owner = old.owner
    mm.dumpable = bprm.dumpable
    # What prctl set is kept over an execve (Linux: mm_init(), MMF_INIT_MASK).
    mm.merge_any, mm.thp_disabled = old.merge_any, old.thp_disabled
    inherit_mdwe(mm, old)
    ksm_execve(mm)
    process.new_mms.append(mm)
    return mm


def exec_binprm(
    process: Process, bprm: Binprm, mm: MmStruct, arguments: Arguments, open_interpreter: Callable[[str], File]
) -> Vaddr:
    """Map the program beside its strings, and give the process this memory, at once. Return as `do_execve` does.

    Source: Linux v6.8 fs/exec.c:exec_binprm(), begin_new_exec().
    """
    image = read_program(mm.frames, bprm.file)
    processor = mm.frames.processor
    pkru = processor.pkru
    # PKRU is reset before a segment takes a key: the denials of the old program end (Linux: pkru_flush_thread()).
    processor.wrpkru(processor.init_pkru)
    try:
        entry = _load(mm, process.cred, bprm, image, arguments, open_interpreter)
    except SysError:
        processor.wrpkru(pkru)
        raise
    process.exec_mmap(mm)
    process.dispositions = {
        signo: disposition
        for signo, disposition in process.dispositions.items()
        if disposition is not Disposition.CAUGHT
    }
    process.comm = os.fsdecode(os.path.basename(bprm.filename)[:TASK_COMM_BYTES])
    return entry


def _load(
    mm: MmStruct,
    cred: Cred,
    bprm: Binprm,
    image: ElfImage,
    arguments: Arguments,
    open_interpreter: Callable[[str], File],
) -> Vaddr:
    """Fill an address space that has only a stack, and return the address of the first instruction.

    Source: Linux v6.8 fs/binfmt_elf.c:load_elf_binary().
    """
    return _lay_out(mm, cred, bprm, image, arguments, _find_interpreter(mm.frames, image, open_interpreter))


def _find_interpreter(
    frames: Frames, image: ElfImage, open_interpreter: Callable[[str], File]
) -> tuple[File, ElfImage] | None:
    if image.interpreter is None:
        return None
    interpreter = open_interpreter(image.interpreter)
    if not interpreter.readable:
        raise SysError(errno.EACCES)
    return interpreter, read_interpreter(frames, interpreter)


def check_program(frames: Frames, file: File, open_interpreter: Callable[[str], File]) -> None:
    """Raise the exceptions of `do_execve` for a file that is no program, or whose interpreter is none.

    Source: Linux v6.8 fs/binfmt_elf.c:load_elf_binary(), up to its point of no return.
    """
    if not file.readable:
        raise SysError(errno.EACCES)
    _find_interpreter(frames, read_program(frames, file), open_interpreter)


def _lay_out(
    mm: MmStruct,
    cred: Cred,
    bprm: Binprm,
    image: ElfImage,
    arguments: Arguments,
    interpreter: tuple[File, ElfImage] | None,
) -> Vaddr:
    """Map program and interpreter, and write the tables.

    The order is Linux's, because one may replace another, or the stack.
    """
    arch_pick_mmap_layout(mm, bprm.personality)
    if image.executable_stack:
        setup_executable_stack(mm)
    program = map_program(mm, bprm.file, image, privileged=cred.capable(CAP_IPC_LOCK))
    base, entry = 0, program.entry
    if interpreter is not None:
        base = map_interpreter(mm, *interpreter, program, privileged=cred.capable(CAP_IPC_LOCK))
        entry = base + interpreter[1].entry & U64_MASK
    create_elf_tables(mm, arguments, _auxv(image, program, base, cred, bprm.host_auxv))
    mm.start_code, mm.end_code = program.start_code, program.end_code
    mm.start_data, mm.end_data = program.start_data, program.end_data
    mm.start_brk = mm.brk = page_align(program.brk)
    mm.exe_path = bprm.file.path
    if bprm.personality & MMAP_PAGE_ZERO:
        _map_page_zero(mm, cred)
    return entry


def _map_page_zero(mm: MmStruct, cred: Cred) -> None:
    """Map the page at address 0, if the process may do so. Source: Linux v6.8 fs/binfmt_elf.c:load_elf_binary()."""
    prot, flags = Prot.READ | Prot.EXEC, Map.FIXED | Map.PRIVATE
    with suppress(SysError):
        do_mmap(mm, 0, PAGE_SIZE, prot.value, flags.value, None, 0, privileged=cred.capable(CAP_IPC_LOCK))


def _auxv(image: ElfImage, program: Placement, base: Vaddr, cred: Cred, host: tuple[int, int]) -> list[tuple[At, int]]:
    """Return the auxiliary vector in Linux's order. The addresses that `create_elf_tables` fills in are 0 here."""
    return [
        *((type_, value) for type_, value in zip((At.SYSINFO_EHDR, At.MINSIGSTKSZ), host, strict=True) if value),
        (At.HWCAP, ELF_HWCAP),
        (At.PAGESZ, PAGE_SIZE),
        (At.CLKTCK, CLOCKS_PER_SEC),
        (At.PHDR, program.phdr_addr),
        (At.PHENT, PHDR_BYTES),
        (At.PHNUM, image.phnum),
        (At.BASE, base),
        (At.FLAGS, 0),
        (At.ENTRY, program.entry),
        (At.UID, cred.uid),
        (At.EUID, cred.uid),
        (At.GID, cred.gid),
        (At.EGID, cred.gid),
        (At.SECURE, 0),
        (At.RANDOM, 0),
        (At.HWCAP2, ELF_HWCAP2),
        (At.EXECFN, 0),
        (At.PLATFORM, 0),
        (At.NULL, 0),
    ]
