"""userfaultfd(2) and its ioctls. Only translates arguments and records. Answers to Linux v6.8 fs/userfaultfd.c."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import partial
from struct import Struct

from kerneld.errors import SysError
from kerneld.fs.mounts import is_userfaultfd_device
from kerneld.mm.calls.userfaultfd import Source, check_range, check_source, mfill, register, unregister
from kerneld.mm.space.pace import Steps
from kerneld.mm.space.userfaultfd import UserfaultfdCtx
from kerneld.mm.vm_flags import VM_UFFD_MISSING
from kerneld.syscalls.answer import Answer, Call, Pieces, Work
from kerneld.task.capability import CAP_SYS_PTRACE
from kerneld.task.uaccess import copy_from_user
from shared.uapi.page import PAGE_SIZE
from shared.uapi.userfaultfd import (
    API,
    COPY,
    DONTWAKE,
    RANGE,
    REGISTER,
    UFFD_API,
    UFFD_USER_MODE_ONLY,
    USERFAULTFD_IOC_NEW,
    ZEROPAGE,
    Feature,
    RegisterMode,
    Uffdio,
)

_FLAGS = os.O_CLOEXEC | os.O_NONBLOCK | UFFD_USER_MODE_ONLY
_NR = 0xFF
_API_IOCTLS = sum(1 << (nr & _NR) for nr in (Uffdio.REGISTER, Uffdio.UNREGISTER, Uffdio.API))
_RANGE_IOCTLS = sum(1 << (nr & _NR) for nr in (Uffdio.WAKE, Uffdio.COPY, Uffdio.ZEROPAGE))
_FEATURES = sum(Feature)


def sys_userfaultfd(call: Call) -> Answer:
    """args: flags. Returns 0 and a descriptor.

    Raises SysError(EPERM) for a caller without CAP_SYS_PTRACE that wants the kernel's accesses to wait too, unless
    vm.unprivileged_userfaultfd is 1; EINVAL for an unknown flag; EMFILE over a limit.
    """
    flags = call.int_arg(0)
    allowed = flags & UFFD_USER_MODE_ONLY or call.process.cred.capable(CAP_SYS_PTRACE)
    if not allowed and not call.kernel.sysctl.unprivileged_userfaultfd:
        raise SysError(errno.EPERM)
    return _new(call, flags)


def _new(call: Call, flags: int) -> Answer:
    """Source: Linux v6.8 fs/userfaultfd.c:new_userfaultfd()."""
    if flags & ~_FLAGS:
        raise SysError(errno.EINVAL)
    return Answer(0, fds=(call.kernel.userfaultfds.make(call.process, call.mm, flags),))


def sys_ioctl(call: Call) -> int | Answer | Work:
    """args: a descriptor, a command, what it names; inline: the record of the command. Consumes the descriptor.

    Returns as the command does, and the record as it is afterwards, if the command changes it. With
    USERFAULTFD_IOC_NEW, a descriptor. Raises SysError(ENOTTY) for a descriptor that is no userfaultfd; EINVAL for an
    unknown command, and before UFFDIO_API.
    """
    fd, command = call.take_fd(), call.int_arg(1)
    ctx = call.kernel.userfaultfds.find(fd)
    if ctx is None and command == USERFAULTFD_IOC_NEW and is_userfaultfd_device(os.fstat(fd)):
        return _new(call, call.int_arg(2))
    if ctx is None:
        raise SysError(errno.ENOTTY)
    ioctl = _IOCTLS.get(command)
    if ioctl is None or (command != Uffdio.API and not ctx.is_initialized):
        raise SysError(errno.EINVAL)
    return ioctl(call, ctx)


def _api(call: Call, ctx: UserfaultfdCtx) -> Answer:
    """Source: Linux v6.8 fs/userfaultfd.c:userfaultfd_api()."""
    version, features, _ = _unpack(API, call)
    if version != UFFD_API or features & ~_FEATURES:
        return Answer(-errno.EINVAL, bytes(API.size))
    told = API.pack(version, _FEATURES, _API_IOCTLS)
    if ctx.is_initialized:
        return Answer(-errno.EINVAL, bytes(API.size))
    ctx.features, ctx.is_initialized = Feature(features), True
    return Answer(0, told)


def _register(call: Call, ctx: UserfaultfdCtx) -> int | Answer | Work:
    start, length, mode, _ = _unpack(REGISTER, call)
    if mode != RegisterMode.MISSING:
        raise SysError(errno.EINVAL)
    check_range(ctx.mm, start, length)
    steps = register(ctx, start, start + length, VM_UFFD_MISSING)
    return _with_mmap_lock(call, ctx, steps, Answer(0, REGISTER.pack(start, length, mode, _RANGE_IOCTLS)))


def _with_mmap_lock(call: Call, ctx: UserfaultfdCtx, steps: Steps, answer: int | Answer) -> int | Answer | Work:
    """Change which VMAs are watched; the threads of their process wait."""

    def pieces() -> Pieces:
        yield from call.wait_for(ctx.mm)
        if ctx.mm.is_dying:
            raise SysError(errno.ENOMEM)
        with call.kernel.table.mmap_locks.write(call.thread, ctx.mm):
            yield from steps
        return answer

    return Work(pieces()).go_on()


def _unregister(call: Call, ctx: UserfaultfdCtx) -> int | Answer | Work:
    start, length = _unpack(RANGE, call)
    check_range(ctx.mm, start, length)
    return _with_mmap_lock(call, ctx, unregister(ctx.mm, start, start + length), 0)


def _wake(call: Call, ctx: UserfaultfdCtx) -> int:
    start, length = _unpack(RANGE, call)
    check_range(ctx.mm, start, length)
    ctx.wake(start, length)
    return 0


def _copy(call: Call, ctx: UserfaultfdCtx) -> int | Answer | Work:
    """Source: Linux v6.8 fs/userfaultfd.c:userfaultfd_copy()."""
    start, source, length, mode, _ = _unpack(COPY, call)
    check_source(ctx.mm, source, length)
    check_range(ctx.mm, start, length)
    if mode & ~DONTWAKE:
        raise SysError(errno.EINVAL)
    given = partial(COPY.pack, start, source, length, mode)
    return Work(_fill(call, ctx, (start, length, mode), partial(_read_page, call, source), given)).go_on()


def _zeropage(call: Call, ctx: UserfaultfdCtx) -> int | Answer | Work:
    start, length, mode, _ = _unpack(ZEROPAGE, call)
    check_range(ctx.mm, start, length)
    if mode & ~DONTWAKE:
        raise SysError(errno.EINVAL)
    return Work(_fill(call, ctx, (start, length, mode), None, partial(ZEROPAGE.pack, start, length, mode))).go_on()


def _fill(
    call: Call, ctx: UserfaultfdCtx, wanted: tuple[int, int, int], source: Source | None, record: Callable[[int], bytes]
) -> Pieces:
    """Give pages, wake who waits for those that were given, and say how many bytes that were.

    If they are fewer than asked for, the call fails with EAGAIN.
    Source: Linux v6.8 fs/userfaultfd.c: userfaultfd_copy(), userfaultfd_zeropage().
    """
    start, length, mode = wanted
    done, error = yield from mfill(ctx, start, length, source)
    if not done and error == errno.ESRCH:
        raise SysError(error)
    if not done:
        return Answer(-error, record(-error))
    if not mode & DONTWAKE:
        ctx.wake(start, done)
    return Answer(0 if done == length else -errno.EAGAIN, record(done))


def _read_page(call: Call, source: int, offset: int) -> bytes:
    data = copy_from_user(call.mm, source + offset, PAGE_SIZE)
    if len(data) < PAGE_SIZE:
        raise SysError(errno.EFAULT)
    return data


def _unpack(record: Struct, call: Call) -> tuple[int, ...]:
    if len(call.data) != record.size:
        raise SysError(errno.EFAULT)
    return record.unpack(call.data)


_IOCTLS: dict[int, Callable[[Call, UserfaultfdCtx], int | Answer | Work]] = {
    Uffdio.API: _api,
    Uffdio.REGISTER: _register,
    Uffdio.UNREGISTER: _unregister,
    Uffdio.WAKE: _wake,
    Uffdio.COPY: _copy,
    Uffdio.ZEROPAGE: _zeropage,
}
