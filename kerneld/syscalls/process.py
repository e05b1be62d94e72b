"""The calls about processes: ids, signals, fork, execve, exit, limits."""

from __future__ import annotations

import errno
import os
import struct
from resource import RUSAGE_SELF, RUSAGE_THREAD

from kerneld.errors import SysError
from kerneld.fs.open_file import is_in_memory
from kerneld.mm.files.file import File
from kerneld.mm.limits import STACK_LIMIT_BYTES
from kerneld.syscalls.answer import Answer, Call, Pieces, Work
from kerneld.task.capability import CAP_SYS_RESOURCE
from kerneld.task.exec import Binprm, check_program, do_execve
from kerneld.task.exec_stack import Strings
from kerneld.task.exit import do_exit, do_group_exit, zap_other_threads
from kerneld.task.real_process import find_ppid
from kerneld.task.signal import do_sigaction
from kerneld.task.task import Cred, Process
from shared.uapi.native import CLONE_CANCEL, CLONE_LEFT, CLONE_SHARE
from shared.uapi.page import PAGE_SHIFT, Pid
from shared.uapi.personality import ASKS, READ_IMPLIES_EXEC
from shared.uapi.resource import NR_OPEN, RLIM_NLIMITS, RLIMIT_NOFILE
from shared.uapi.syscalls import Exec

_EXEC_FLAGS = (Exec.COUNTED | Exec.STRINGS_FD | Exec.ENTRY | Exec.AUXV | Exec.INTERPRETER_FD).value
_ENTRY = struct.Struct("<QQ")
_RLIMIT64 = struct.Struct("<QQ")
_USAGE = struct.Struct("<QQQ")
_INFO = struct.Struct("<5Q")


def sys_getpid(call: Call) -> int:
    """Return the process's id."""
    return call.process.pid


def sys_gettid(call: Call) -> int:
    """Return the thread's id."""
    return call.thread.tid


def sys_getppid(call: Call) -> int:
    """Return the pid of the real process's parent; 0 if the parent has no pid in the daemon's pid namespace."""
    return find_ppid(call.process.pid) or 0


def sys_getuid(call: Call) -> int:
    """Return the user id of the process."""
    return call.process.cred.uid


def sys_setuid(call: Call) -> int:
    """args: uid. Raises as `ProcessTable.setuid` does."""
    call.kernel.table.setuid(call.process, call.int_arg(0))
    return 0


def sys_personality(call: Call) -> int:
    """args: flags, 32 bits. Set the thread's personality, unless the flags are ASKS; return the one before.

    Source: Linux v6.8 kernel/exec_domain.c:SYSCALL_DEFINE1(personality).
    """
    before, wanted = call.thread.personality, call.int_arg(0) & ASKS
    if wanted != ASKS:
        call.thread.personality = wanted
    return before


def sys_rt_sigaction(call: Call) -> int:
    """args: signo, disposition."""
    do_sigaction(call.process, call.int_arg(0), call.args[1])
    return 0


def clone(call: Call) -> int | Answer | Work:
    """args: CLONE_SHARE, CLONE_CANCEL, CLONE_LEFT or 0; a token or a pid.

    Return the token with which the child of a real fork attaches. The copy of the memory is made now; with CLONE_SHARE
    there is none. CLONE_CANCEL gives a token back, and returns 0; it raises SysError(EINVAL) for a token that the
    caller does not have. CLONE_LEFT returns 0, also if there is no such child, or it has other memory already.
    """
    if call.args[0] & CLONE_LEFT:
        _child_has_left(call, call.args[1])
        return 0
    if call.args[0] & CLONE_CANCEL:
        call.kernel.table.cancel(call.process, call.args[1])
        return 0
    if call.args[0] & CLONE_SHARE:
        call.kernel.tlbs.get(call.mm)
        return _expect(call, call.kernel.table.share(call.thread))
    return Work(_copy(call)).go_on()


def _child_has_left(call: Call, pid: Pid) -> None:
    """Let go of the TLB for a child of vfork. The host knows before the child asks for its next program, or ends.

    Its parent runs again, and gives up the child's stack: without this an agent would have to drop that.
    """
    child = call.kernel.processes.get(pid)
    if child is None or child is call.process or child.mm is not call.mm:
        return
    for thread in child.threads:
        tlb, thread.tlb = thread.tlb, None
        if tlb is not None:
            tlb.left()


def _copy(call: Call) -> Pieces:
    token = yield from call.kernel.table.clone(call.thread)
    return _expect(call, token)


def _expect(call: Call, token: int) -> int:
    if call.kernel.lines is not None and call.thread.tlb is not None:
        call.kernel.lines.expect_child(call.thread, token)
        call.kernel.table.give(token)
    return token


def sys_exit(call: Call) -> int:
    """End the calling thread. The end of the last thread ends the process."""
    do_exit(call.thread)
    return 0


def sys_exit_group(call: Call) -> int:
    """End the process."""
    do_group_exit(call.thread, 0)
    return 0


def sys_execve(call: Call) -> int | Answer | Work:
    """args: three pointers, Exec flags, argc, envc; a descriptor of the program's file; inline: its strings.

    Raises EBADF without a descriptor, or if the second one is no memory file; EINVAL for unknown flags; EFAULT for
    strings without an end; and as `do_execve` does. The file is opened before the strings are read, as in Linux v6.8
    fs/exec.c:alloc_bprm(). All other threads of the process end, as in de_thread() there. Long strings are copied in
    pieces. With Exec.CHECK nothing of this is done: it returns 0, or raises what is wrong with the files.
    """
    return Work(_execve(call)).go_on()


def _execve(call: Call) -> Pieces:
    cred = call.process.cred
    files = call.kernel.files
    flags = call.args[3]
    fd = call.take_own_fd()
    strings_fd = call.take_fd() if flags & Exec.STRINGS_FD and call.has_fd else None
    held: list[File] = []
    own: list[int] = []

    def open_interpreter(path: str) -> File:
        opened = files.open_exec(own.pop(), cred, call.process) if own else files.open_path(path, cred, call.process)
        held.append(opened)
        return opened

    try:
        file = files.open_exec(fd, cred, call.process)
        held.append(file)
        if flags & Exec.INTERPRETER_FD:
            own.append(call.take_own_fd())
        if flags & Exec.CHECK:
            check_program(call.mm.frames, file, open_interpreter)
            return 0
        filename, strings = _take_strings(call, file, strings_fd)
        extra = call.args[1:3] if flags & Exec.AUXV else (0, 0)
        dumpable, personality = files.may_read(file, cred), call.thread.personality
        bprm = Binprm(file, filename, strings, dumpable=dumpable, host_auxv=extra, personality=personality)
        entry = yield from do_execve(call.process, bprm, open_interpreter)
    finally:
        for unused in own:
            os.close(unused)
        for opened in held:
            files.put_unused(opened)
    # Linux v6.8 arch/x86/kernel/process_64.c:set_personality_64bit().
    call.thread.personality &= ~READ_IMPLIES_EXEC
    zap_other_threads(call.thread)
    if flags & Exec.ENTRY:
        return Answer(0, _ENTRY.pack(entry, call.mm.start_stack))
    return 0


def _take_strings(call: Call, file: File, fd: int | None) -> tuple[bytes, Strings]:
    """Return the program's name and the strings of an execve."""
    flags, argc, envc = call.args[3:]
    if flags & ~_EXEC_FLAGS:
        raise SysError(errno.EINVAL)
    data = call.data if not flags & Exec.STRINGS_FD else _read_strings(fd)
    if not data.endswith(b"\0") and (data or flags & Exec.COUNTED):
        raise SysError(errno.EFAULT)
    if not flags & Exec.COUNTED:
        return os.fsencode(file.path), _split_strings(data)
    name_at = data.rfind(b"\0", 0, -1) + 1
    return data[name_at:-1], Strings(memoryview(data)[:name_at], argc, envc)


def _read_strings(fd: int | None) -> bytes:
    """Return the contents of a memory file. Reading it never blocks."""
    if fd is None or not is_in_memory(fd):
        raise SysError(errno.EBADF)
    size = os.fstat(fd).st_size
    if size > STACK_LIMIT_BYTES:
        raise SysError(errno.E2BIG)
    try:
        return os.pread(fd, size, 0)
    except OSError as error:
        raise SysError(error.errno or errno.EBADF) from None


def _split_strings(data: bytes) -> Strings:
    """Return the strings of two lists. An empty string is between the lists."""
    strings = data.split(b"\0")[:-1]
    middle = strings.index(b"") if b"" in strings else len(strings)
    return Strings.of(strings[:middle], strings[middle + 1 :])


def sys_prlimit64(call: Call) -> int | Answer:
    """args: pid (0: the caller), resource, new limit, old limit; inline in and out: rlim_cur and rlim_max.

    The inline data has a new limit if args[2] is not 0. The reply has the old limit if args[3] is not 0. Raises
    SysError(EINVAL) for an unknown resource or a soft limit over the hard one, ESRCH for no such process, EPERM for
    another user's process, for a hard limit raised without being the superuser, or for more open files than fs.nr_open.
    Source: Linux v6.8 kernel/sys.c:do_prlimit().
    """
    pid, resource = call.int_arg(0), call.int_arg(1)
    new, old = call.args[2:4]
    if new and len(call.data) != _RLIMIT64.size:
        raise SysError(errno.EFAULT)
    process = call.get_process(pid) if pid else call.process
    _check_may_limit(call.process, process)
    if resource >= RLIM_NLIMITS:
        raise SysError(errno.EINVAL)
    limits = process.rlimits
    before = _RLIMIT64.pack(limits.soft[resource], limits.hard[resource])
    if new:
        soft, hard = _RLIMIT64.unpack(call.data)
        if soft > hard:
            raise SysError(errno.EINVAL)
        if resource == RLIMIT_NOFILE and hard > NR_OPEN:
            raise SysError(errno.EPERM)
        if hard > limits.hard[resource] and not may_raise_limits(call.process.cred):
            raise SysError(errno.EPERM)
        limits.soft[resource], limits.hard[resource] = soft, hard
    return Answer(0, before) if old else 0


def sys_getrusage(call: Call) -> Answer:
    """args: who. Return inline, 64 bits each: the most resident memory in KiB, minor faults, major faults.

    RUSAGE_THREAD gives the faults of the whole process. Raises SysError(EINVAL) for children and any other `who`.
    Source: Linux v6.8 kernel/sys.c:getrusage().
    """
    if call.int_arg(0) not in (RUSAGE_SELF, RUSAGE_THREAD):
        raise SysError(errno.EINVAL)
    rss = call.mm.rss
    most_kb = max(rss.hiwater, rss.resident_pages) << (PAGE_SHIFT - 10)
    return Answer(0, _USAGE.pack(most_kb, call.process.min_flt, call.process.maj_flt))


def sys_sysinfo(call: Call) -> Answer:
    """No args. Return inline, 64 bits each: the bytes of all memory, of free, of shared; of swap, and of free swap.

    What programs have been given in advance (`kerneld.tlb.advances`) counts as free.
    Source: Linux v6.8 kernel/sys.c:do_sysinfo(), mm/show_mem.c:si_meminfo().
    """
    frames = call.kernel.frames
    free, swap = frames.free_pages + len(frames.given.pfns), frames.swap
    pages = (frames.total_pages, free, frames.nr_shmem, swap.total_pages, swap.nr_free)
    return Answer(0, _INFO.pack(*(number << PAGE_SHIFT for number in pages)))


def may_raise_limits(cred: Cred) -> bool:
    """Return whether a task with these credentials may raise a hard limit (Linux: CAP_SYS_RESOURCE)."""
    return cred.capable(CAP_SYS_RESOURCE)


def _check_may_limit(caller: Process, process: Process) -> None:
    """Raise SysError(EPERM) for another user's process. Source: Linux v6.8 kernel/sys.c:check_prlimit_permission()."""
    if process is caller or may_raise_limits(caller.cred):
        return
    if (process.cred.uid, process.cred.gid) != (caller.cred.uid, caller.cred.gid):
        raise SysError(errno.EPERM)
