"""The calls about processes: who one is, setuid, dispositions, clone tokens, threads, exit; tests/task has execve."""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import replace
from signal import SIGBUS, SIGKILL, SIGSEGV, SIGSTOP, SIGTERM

import pytest

from kerneld.errors import SysError
from kerneld.fs.proc_vmstat import show_meminfo
from kerneld.syscalls.dispatch import dispatch
from kerneld.syscalls.kernel import Sender
from kerneld.task.table import MAX_TOKENS
from shared.uapi.signals import BusCode, Disposition, SegvCode
from shared.uapi.syscalls import ABI_VERSION, Nr
from shared.wire import Request, SigInfo
from tests.support.programs import BASE, OTHER, READ, ROOT, SHARED, USER, Program, World

NOBODY = (1 << 32) - 1


class TestWho:
    """Pids are the real ones."""

    def test_ids(self, world: World, real_child: int) -> None:
        program = world.attach(USER, pid=real_child)
        assert program.call(Nr.GETPID) == program.call(Nr.GETTID) == real_child
        assert program.call(Nr.GETPPID) == os.getpid()
        assert program.call(Nr.GETUID) == USER

    def test_a_process_that_has_gone_has_no_parent(self, program: Program) -> None:
        assert program.call(Nr.GETPPID) == 0


class TestSetuid:
    """Source: Linux v6.8 kernel/sys.c:__sys_setuid(). Who has given the superuser's rights up never has them again."""

    def test_an_ordinary_user_stays_who_it_is(self, program: Program) -> None:
        assert program.call(Nr.SETUID, OTHER) == -errno.EPERM
        assert program.call(Nr.SETUID, ROOT) == -errno.EPERM
        assert program.call(Nr.SETUID, USER) == 0
        assert program.call(Nr.GETUID) == USER

    @pytest.mark.parametrize("uid", [NOBODY, -1])
    def test_no_uid_at_all(self, program: Program, root: Program, uid: int) -> None:
        assert program.call(Nr.SETUID, uid) == root.call(Nr.SETUID, uid) == -errno.EINVAL

    def test_the_superuser_drops_its_rights_for_good(self, root: Program, program: Program) -> None:
        answer = root.answer(Nr.RAM, program.pid)
        assert answer.ret > 0
        os.close(answer.fds[0])
        assert root.call(Nr.SETUID, ROOT) == 0
        assert root.process.cred.superuser
        assert root.call(Nr.SETUID, OTHER) == 0
        assert (root.call(Nr.GETUID), root.call(Nr.RAM, program.pid)) == (OTHER, -errno.EPERM)
        assert root.call(Nr.SETUID, ROOT) == -errno.EPERM

    def test_also_when_it_attaches_again(self, world: World, real_child: int) -> None:
        first = world.attach(ROOT, pid=real_child)
        assert first.call(Nr.SETUID, USER) == 0
        world.kernel.thread_exited(first.thread)
        again = world.attach(ROOT, pid=real_child)
        assert (again.call(Nr.GETUID), again.process.cred.superuser) == (USER, False)

    def test_a_child_is_who_its_parent_was_then(self, world: World, real_child: int) -> None:
        parent = world.attach(ROOT, pid=os.getpid())
        token = parent.call(Nr.CLONE)
        assert parent.call(Nr.SETUID, USER) == 0
        child = world.attach(OTHER, pid=real_child, token=token)
        assert (child.call(Nr.GETUID), child.process.cred.superuser) == (ROOT, True)


class TestSigaction:
    """Source: Linux v6.8 kernel/signal.c:do_sigaction()."""

    @pytest.mark.parametrize("signo", [0, 65, -1, SIGKILL, SIGSTOP])
    def test_signals_that_cannot_be_set(self, program: Program, signo: int) -> None:
        assert program.call(Nr.RT_SIGACTION, signo, Disposition.CAUGHT) == -errno.EINVAL

    @pytest.mark.parametrize("disposition", [3, -1, 1 << 40])
    def test_no_such_disposition(self, program: Program, disposition: int) -> None:
        assert program.call(Nr.RT_SIGACTION, SIGSEGV, disposition) == -errno.EINVAL

    def test_the_first_and_the_last(self, program: Program) -> None:
        for signo in (1, SIGTERM, 64):
            assert program.call(Nr.RT_SIGACTION, signo, Disposition.IGNORE) == 0

    def test_a_caught_signal_is_reported_and_the_program_goes_on(self, program: Program) -> None:
        assert program.call(Nr.RT_SIGACTION, SIGSEGV, Disposition.CAUGHT) == 0
        for _ in range(2):
            answer = program.answer(Nr.LOAD, BASE, 4)
            assert (answer.ret, answer.signo, answer.siginfo) == (0, SIGSEGV, SigInfo(SegvCode.MAPERR, False, BASE))
        assert program.mmap(1, at=BASE) == BASE
        assert program.load(BASE) == b"\0"

    @pytest.mark.parametrize("disposition", [None, Disposition.DEFAULT, Disposition.IGNORE])
    def test_any_other_is_the_end(self, world: World, program: Program, disposition: Disposition | None) -> None:
        """A fault cannot be ignored: force_sig_info_to_task() makes the default of it."""
        if disposition is not None:
            assert program.call(Nr.RT_SIGACTION, SIGSEGV, disposition) == 0
        answer = program.answer(Nr.LOAD, BASE, 4)
        assert (answer.signo, answer.siginfo) == (SIGSEGV, SigInfo(SegvCode.MAPERR, True, BASE))
        assert world.kernel.take_ended() == [program.process]
        assert (program.process.exit_signal, program.process.ended) == (SIGSEGV, True)

    def test_each_signal_for_itself(self, program: Program, fd: int) -> None:
        assert program.call(Nr.RT_SIGACTION, SIGBUS, Disposition.CAUGHT) == 0
        program.mmap(3, READ, SHARED, at=BASE, fd=fd)
        answer = program.answer(Nr.LOAD, BASE + 0x2000, 1)
        assert (answer.signo, answer.siginfo) == (SIGBUS, SigInfo(BusCode.ADRERR, False, BASE + 0x2000))
        answer = program.answer(Nr.STORE, BASE, 1, data=b"x")
        assert (answer.signo, answer.siginfo) == (SIGSEGV, SigInfo(SegvCode.ACCERR, True, BASE))

    def test_a_child_inherits_them(self, world: World, real_child: int) -> None:
        parent = world.attach(USER, pid=os.getpid())
        assert parent.call(Nr.RT_SIGACTION, SIGSEGV, Disposition.CAUGHT) == 0
        token = parent.call(Nr.CLONE)
        assert parent.call(Nr.RT_SIGACTION, SIGSEGV, Disposition.DEFAULT) == 0
        child = world.attach(USER, pid=real_child, token=token)
        answer = child.answer(Nr.LOAD, BASE, 1)
        assert answer.siginfo is not None
        assert not answer.siginfo.fatal


class TestClone:
    """A token is a copy made at that moment, good once, for a child of that parent."""

    @pytest.fixture
    def parent(self, world: World) -> Program:
        made = world.attach(USER, pid=os.getpid())
        made.mmap(1, at=BASE)
        made.store(BASE, b"then")
        return made

    def refused(self, world: World, pid: int, token: int) -> int:
        """Return the errno of an attach with a token; its traceback must not outlive it, for it holds the copy."""
        try:
            world.attach(USER, pid=pid, token=token)
        except SysError as error:
            return error.errno
        return 0

    def test_the_memory_is_that_of_the_call(self, world: World, parent: Program, real_child: int) -> None:
        token = parent.call(Nr.CLONE)
        parent.store(BASE, b"now!")
        child = world.attach(USER, pid=real_child, token=token)
        assert (child.load(BASE, 4), parent.load(BASE, 4)) == (b"then", b"now!")
        child.store(BASE, b"mine")
        assert parent.load(BASE, 4) == b"now!"

    def test_it_is_good_once(self, world: World, parent: Program, real_child: int) -> None:
        token = parent.call(Nr.CLONE)
        child = world.attach(USER, pid=real_child, token=token)
        world.kernel.process_died(child.process)
        world.kernel.take_ended()
        assert self.refused(world, real_child, token) == errno.EINVAL

    def test_it_is_for_a_child_of_that_parent(self, world: World, parent: Program, program: Program) -> None:
        token = parent.call(Nr.CLONE)
        assert self.refused(world, os.getppid(), token) == errno.EINVAL
        assert self.refused(world, program.pid + 77, token) == errno.EINVAL

    def test_a_token_that_nobody_made(self, world: World, parent: Program, real_child: int) -> None:
        token = parent.call(Nr.CLONE)
        assert self.refused(world, real_child, token ^ 1) == errno.EINVAL

    def test_a_process_that_is_there_already_needs_none(self, world: World, parent: Program, real_child: int) -> None:
        world.attach(USER, pid=real_child)
        assert self.refused(world, real_child, parent.call(Nr.CLONE)) == errno.EINVAL

    def test_it_goes_with_its_parent(self, world: World, parent: Program, real_child: int) -> None:
        token = parent.call(Nr.CLONE)
        assert parent.call(Nr.EXIT_GROUP) == 0
        world.kernel.take_ended()
        assert self.refused(world, real_child, token) == errno.EINVAL
        assert world.kernel.frames.free_pages == world.kernel.frames.total_pages

    def test_how_many_may_wait(self, parent: Program, program: Program) -> None:
        tokens = [parent.call(Nr.CLONE) for _ in range(MAX_TOKENS)]
        assert len(set(tokens)) == MAX_TOKENS
        assert min(tokens) > 0
        assert parent.call(Nr.CLONE) == -errno.EAGAIN
        assert program.call(Nr.CLONE) > 0

    def test_without_frames(self, world: World, parent: Program) -> None:
        def hook(count: int) -> None:
            raise SysError(errno.ENOMEM)

        world.kernel.frames.alloc_hook = hook
        assert parent.call(Nr.CLONE) == -errno.ENOMEM
        world.kernel.frames.alloc_hook = None
        assert parent.load(BASE, 4) == b"then"


class TestThreadsAndExit:
    """A connection is a thread; the last one's end is the process's."""

    def second_thread(self, world: World, program: Program) -> Program:
        tid = next(int(name) for name in os.listdir("/proc/1/task"))
        process = program.process
        assert tid != process.pid
        thread = type(program.thread)(tid, process)
        process.threads.append(thread)
        return Program(world.kernel, thread)

    def test_exit_ends_one_thread(self, world: World, program: Program) -> None:
        second = self.second_thread(world, program)
        assert second.call(Nr.EXIT) == 0
        assert (program.process.ended, program.process.threads) == (False, [program.thread])
        assert program.mmap(1, at=BASE) == BASE
        assert program.call(Nr.EXIT, 3) == 0
        assert (program.process.ended, world.kernel.take_ended()) == (True, [program.process])

    def test_exit_group_ends_all(self, world: World, program: Program) -> None:
        second = self.second_thread(world, program)
        assert second.call(Nr.EXIT_GROUP, 0) == 0
        assert program.process.ended
        assert program.pid not in world.kernel.processes
        assert program.process.exit_signal == 0

    def test_attach_of_a_thread(self, world: World, program: Program) -> None:
        for tid, token, version, code in (
            (0, 0, ABI_VERSION + 1, errno.EPROTO),
            (0, 0, ABI_VERSION, errno.EINVAL),  # The main thread is attached already.
            (1, 0, ABI_VERSION, errno.EINVAL),  # That is no thread of it.
            (0, 1, ABI_VERSION, errno.EINVAL),
        ):
            with pytest.raises(SysError) as caught:
                world.kernel.attach(Sender(program.pid, USER, USER), version, tid, token)
            assert caught.value.errno == code

    def test_threads_share_memory_and_credentials(self, world: World, root: Program) -> None:
        second = self.second_thread(world, root)
        second.mmap(1, at=BASE)
        second.store(BASE, b"ours")
        assert root.load(BASE, 4) == b"ours"
        assert second.call(Nr.SETUID, USER) == 0
        assert root.call(Nr.GETUID) == USER


def test_execve_without_a_descriptor(program: Program) -> None:
    assert program.call(Nr.EXECVE, 0, 0, 0, data=b"a\0\0") == -errno.EBADF


def test_execve_of_strings_that_do_not_end(program: Program, fd: int) -> None:
    """The file is opened first."""
    assert program.call(Nr.EXECVE, 0, 0, 0, data=b"a\0b", fds=[fd]) == -errno.EACCES
    os.fchmod(fd, 0o755)
    assert program.call(Nr.EXECVE, 0, 0, 0, data=b"a\0b", fds=[fd]) == -errno.EFAULT
    assert program.mmap(1, at=BASE) == BASE


@pytest.mark.parametrize("data", [b"a\0b", b"a\0\0"])
@pytest.mark.parametrize("mode", [0o600, 0o700])
def test_execve_that_fails_has_consumed_its_descriptor(program: Program, fd: int, data: bytes, mode: int) -> None:
    """The next request of the datagram must not get it: they are consumed in order."""
    os.fchmod(fd, mode)
    copy = os.dup(fd)
    left = [copy]
    request = Request(Nr.EXECVE, (0, 0, 0, 0, 0, 0), data)
    assert dispatch(program.kernel, program.thread, request, left).ret < 0
    assert left == []
    assert not os.path.exists(f"/proc/self/fd/{copy}")


def test_a_superuser_that_is_not_root(world: World) -> None:
    """The user that runs kerneld: setuid to root keeps the rights, to anybody else, itself included, drops them."""
    program = world.attach(USER)
    program.process.cred = replace(program.process.cred, superuser=True)
    assert program.call(Nr.SETUID, ROOT) == 0
    assert program.process.cred.superuser


def test_sysinfo_says_what_meminfo_says(world: World, program: Program) -> None:
    """Frames that are given in advance count as free."""
    program.call(Nr.MMAP, BASE, 3 * 4096, 3, 0x31, 0xFFFF_FFFF, 0)
    assert program.call(Nr.TOUCH, BASE, 4096, 1) == 1
    lines = show_meminfo(world.kernel.frames, world.kernel.sysctl).decode().splitlines()
    kb = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    given = world.kernel.frames.given
    given.pfns.add(pfn := world.kernel.frames.alloc_page(0))
    answer = dispatch(world.kernel, program.thread, Request(Nr.SYSINFO, (0,) * 6, b""), [])
    names = ("MemTotal", "MemFree", "Shmem", "SwapTotal", "SwapFree")
    assert struct.unpack("<5Q", answer.data) == tuple(kb[name] << 10 for name in names)
    assert kb["Shmem"] == 4
    given.put_back([pfn])
