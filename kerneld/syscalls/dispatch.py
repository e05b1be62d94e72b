"""Runs one request: finds the handler, runs it, and turns its result into an errno, a signal or an oops.

Only here SysError becomes `-errno`, the shadow table is flushed, and tests check the invariants. There is one thread,
and a call, or a piece of a call, runs until the machine is consistent again. So nothing in the kernel needs a lock.
"""

from __future__ import annotations

import errno
from signal import SIGSEGV
from typing import TYPE_CHECKING

import structlog

from kerneld.errors import SysError
from kerneld.mm.space.userfaultfd import AwaitsPage
from kerneld.shadowpt.asking import Asking, Pending, WouldWait
from kerneld.syscalls.advance import recall_advances
from kerneld.syscalls.answer import Answer, Call, Pieces, Work, to_its_end
from kerneld.syscalls.table import HANDLERS, RESTART, find_name
from kerneld.syscalls.userfault_wait import after_userfaults
from kerneld.task.entry import exit_to_user_mode_prepare
from kerneld.task.exit import do_group_exit
from kerneld.task.sched import run_task
from shared.terminal import one_line
from shared.uapi.signals import SI_KERNEL
from shared.uapi.syscalls import Nr
from shared.wire import SigInfo

if TYPE_CHECKING:
    from kerneld.syscalls.kernel import Kernel
    from kerneld.task.task import Delivered, Thread
    from shared.wire import Request

_log = structlog.get_logger("kerneld.syscalls")
_FAULT = int(Nr.FAULT)
_CHANGE_NOTHING = frozenset({int(Nr.PROCREAD), int(Nr.RDPKRU)})
"""Requests after which tests check no invariants: a program that watches makes most of its requests of them."""


def dispatch(kernel: Kernel, thread: Thread, request: Request, fds: list[int]) -> Answer:
    """Run one request of a thread whose process lives, and return its result.

    `fds` are the remaining descriptors of the datagram. The request takes those that it consumes from the front. The
    shadow table is up to date on return, also when the call fails. If memory has become short, the background pass
    of reclaim runs before that.
    """
    call = Call(kernel, thread, request.args, request.data, fds)
    result = run(call, request.nr)
    while isinstance(result, Work):
        call.work = result
        result = run(call, RESTART)
    return Answer(result) if isinstance(result, int) else result


def run(call: Call, nr: int) -> int | Answer | Work:
    """Do the same as `dispatch` for an existing Call. A result that is only `ret`, as for most calls, stays an int.

    A long request may return a `Work`, after its first piece. It continues when the Work is set as `call.work` and the
    call runs again with the number RESTART.
    """
    handler = HANDLERS.get(nr)
    if handler is None:
        return -errno.ENOSYS
    kernel, thread, work = call.kernel, call.thread, call.work
    frames = kernel.frames
    frames.has_stalled, frames.has_reclaimed, frames.may_stall = False, False, True
    if nr != RESTART:
        call.nr = nr
    if kernel.advances.live and call.nr != _FAULT:
        recall_advances(call)
    if kernel.rq.curr is not thread:
        run_task(kernel.rq, thread)
    try:
        result = handler(call)
    except SysError as error:
        result = _failed(call, nr, error)
    except WouldWait as wait:
        result = Work(_begun_again(call, nr, wait)).go_on()
    except AwaitsPage as awaits:
        pieces = after_userfaults(call, HANDLERS[call.nr], awaits.fault)
        result = Work(pieces, is_interruptible=call.nr == _FAULT).go_on()
    except Exception:
        call.close_taken()
        return _oops(call, nr)
    finally:
        frames.may_stall = False
    if frames.has_reclaimed and isinstance(result, Work):
        result.gives_way = True
    if thread.flags:
        exit_to_user_mode_prepare(thread)
    if frames.buddy.nr_free < frames.watermark_low and not kernel.dying.queue:
        kernel.advances.recall()
        kernel.vmscan.wakeup_kswapd()
    if kernel.shadowpt.dirty:
        kernel.shadowpt.flush()
    elif kernel.shadowpt.followed_host is not None:
        result = _after_look(call, result, is_refreshed=work is not None and work.is_refreshed)
    delivered = thread.delivered
    if delivered is not None:
        thread.delivered = None
        result = _with_signal(result, delivered)
    if call.nr_taken and not isinstance(result, Work):
        call.close_taken()
    if kernel.config.check_invariants and nr not in _CHANGE_NOTHING:
        kernel.check()
    return result


def _failed(call: Call, nr: int, error: SysError) -> int | Answer | Work:
    """Return the errno of a call that has failed, or its next try if it only found no memory in this turn."""
    if error.why:
        explain_refusal(call, nr, error)
    return Work(_tried_again(call)).go_on() if call.kernel.frames.take_stall() else -error.errno


def _with_signal(result: int | Answer | Work, delivered: Delivered) -> Answer:
    """Return the answer that also tells of a signal. What a long request has not done stays undone."""
    if isinstance(result, Work):
        result.close()
        result = 0
    ret, fds_out = (result, ()) if isinstance(result, int) else (result.ret, result.fds)
    return Answer(ret, b"", delivered.signo, delivered.info, fds_out)


def _begun_again(call: Call, nr: int, wait: WouldWait) -> Pieces:
    """Begin a request again from its start, each time its awaited answer has come. It has changed nothing before.

    This generator and the next yield at once, so that they have begun: only then can they be closed in order.
    Linux does the same for -ERESTARTNOINTR: arch/x86/kernel/signal.c:arch_do_signal_or_restart().
    """
    args, data = call.args, call.data
    asking = call.kernel.shadowpt.asking
    told, pending = asking.put_aside(), wait.pending
    try:
        while True:
            while not pending.is_over:
                yield pending
            call.rewind(args, data)
            asking.take_up(told)
            try:
                result = HANDLERS[nr](call)
                assert not isinstance(result, Work)
                return result
            except WouldWait as again:
                pending = again.pending
            except SysError as error:
                if error.why:
                    explain_refusal(call, nr, error)
                raise SysError(error.errno) from None
            finally:
                told = asking.put_aside()
    finally:
        if not pending.is_over:
            asking.reader.give_up(pending)


def _tried_again(call: Call) -> Pieces:
    """Begin a request again from its start, until memory has been found for it, or it fails.

    A request that fails has changed nothing, or what it changes again in the same way. Linux would stay in
    the allocation; a fault would be taken again (arch/x86/mm/fault.c:do_user_addr_fault(), VM_FAULT_RETRY).
    """
    args, data = call.args, call.data
    while True:
        yield None
        call.rewind(args, data)
        try:
            return (yield from to_its_end(HANDLERS[call.nr](call)))
        except SysError:
            if not call.kernel.frames.take_stall():
                raise


def _after_look(call: Call, result: int | Answer | Work, *, is_refreshed: bool) -> int | Answer | Work:
    """Read the real process that the caller's table follows, if there is one. The answer waits for that."""
    if is_refreshed or isinstance(result, Work) or call.thread.delivered is not None:
        return result
    pending = call.kernel.shadowpt.refresh_for(call.process)
    if pending is None or pending.is_over:
        return result
    return Work(_when_over(pending, result, call.kernel.shadowpt.asking), is_refreshed=True).go_on()


def _when_over(pending: Pending, result: int | Answer, asking: Asking) -> Pieces:
    try:
        while not pending.is_over:
            yield pending
    finally:
        if not pending.is_over:
            asking.reader.give_up(pending)
    return result


def explain_refusal(call: Call, nr: int, error: SysError) -> None:
    """Keep and log the reason of a refused call, if its errno has many causes.

    The reason for a caller without privilege is not logged, because such a caller could fill the log. The reason may
    have a name in it, which any user may have chosen: programs print it as it is.
    """
    why = call.process.explanation = one_line(error.why)
    log = _log.warning if call.process.cred.superuser else _log.debug
    log(f"{find_name(nr)} refused", pid=call.process.pid, error=str(error), why=why)


def _oops(call: Call, nr: int) -> Answer:
    """Handle an unexpected exception of a handler: log everything, and end only this task.

    It is like Linux's oops: the task dies of SIGSEGV, and the machine goes on.
    """
    process = call.process
    _log.exception(
        "oops",
        call=find_name(nr),
        args=[hex(arg) for arg in call.args],
        inline_bytes=len(call.data),
        pid=process.pid,
        tid=call.thread.tid,
        comm=process.comm,
        vmas=[repr(vma) for vma in process.mm.vmas][:64] if process.mm is not None else [],
    )
    try:
        do_group_exit(call.thread, SIGSEGV)
    except Exception:
        _log.exception("the oopsing task could not be ended cleanly", pid=process.pid)
    call.kernel.shadowpt.flush()
    return Answer(-errno.EFAULT, b"", SIGSEGV, SigInfo(SI_KERNEL, True, 0))
