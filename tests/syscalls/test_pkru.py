"""PKRU, a register of each thread: what a program reads and sets of it."""

from __future__ import annotations

import os
import threading
from signal import SIGILL

import pytest

from kerneld.hw.processor import INIT_PKRU
from kerneld.syscalls.kernel import Sender
from shared.uapi.signals import Disposition, IllCode, SegvCode
from shared.uapi.syscalls import Nr
from shared.wire import SigInfo
from tests.support.keyed_programs import WD, catch, with_key
from tests.support.programs import (
    BASE,
    USER,
    Program,
    World,
)


class TestPkru:
    """A register, and a thread's own."""

    def test_read_and_write(self, program: Program) -> None:
        assert program.call(Nr.RDPKRU) == INIT_PKRU
        assert program.call(Nr.WRPKRU, 7 << 32 | 0xDEAD_BEE0) == 0
        assert program.call(Nr.RDPKRU) == 0xDEAD_BEE0

    def test_each_process_has_its_own(self, world: World) -> None:
        first, second = world.attach(), world.attach()
        for value in (1, 2):
            first.call(Nr.WRPKRU, value)
            second.call(Nr.WRPKRU, value << 8)
            assert (first.call(Nr.RDPKRU), second.call(Nr.RDPKRU)) == (value, value << 8)

    def test_a_forked_child_has_a_copy(self, world: World, real_child: int) -> None:
        parent = world.attach(pid=os.getpid())
        key = with_key(parent, WD)
        token = parent.call(Nr.CLONE)
        parent.call(Nr.WRPKRU, 0)
        child = world.attach(pid=real_child, token=token)
        assert child.call(Nr.RDPKRU) == INIT_PKRU & ~(3 << 2 * key) | WD << 2 * key
        assert parent.call(Nr.RDPKRU) == 0
        assert child.call(Nr.PKEY_FREE, key) == 0
        assert child.call(Nr.PKEY_ALLOC, 0, 0) == key
        assert child.load(BASE) == b"\0"

    def test_a_further_thread_begins_with_the_first_ones(self, world: World) -> None:
        """As one has it from whoever made it, by clone; after that each has its own."""
        program = world.attach(pid=os.getpid())
        program.call(Nr.WRPKRU, 0x5555_5500)
        over = threading.Event()
        real = threading.Thread(target=over.wait)
        real.start()
        assert real.native_id is not None
        further = Program(world.kernel, world.kernel.attach(Sender(os.getpid(), USER, USER), 1, real.native_id, 0))
        assert further.call(Nr.RDPKRU) == 0x5555_5500
        further.call(Nr.WRPKRU, 0)
        assert (program.call(Nr.RDPKRU), further.call(Nr.RDPKRU)) == (0x5555_5500, 0)
        over.set()
        real.join()

    def test_a_handler_has_the_value_of_a_new_program(self, program: Program) -> None:
        catch(program)
        program.call(Nr.WRPKRU, 0)
        answer = program.answer(Nr.LOAD, BASE, 1)
        assert answer.siginfo == SigInfo(SegvCode.MAPERR, False, BASE, 0, 0)
        assert program.call(Nr.RDPKRU) == INIT_PKRU
        assert program.answer(Nr.LOAD, BASE, 1).siginfo == SigInfo(SegvCode.MAPERR, False, BASE)

    @pytest.mark.parametrize("nr", [Nr.RDPKRU, Nr.WRPKRU])
    def test_there_is_no_such_instruction_without_keys(self, without: Program, nr: int) -> None:
        catch(without)
        answer = without.answer(nr, 3)
        assert (answer.signo, answer.siginfo) == (SIGILL, SigInfo(IllCode.ILLOPN, False, 0))
        without.call(Nr.RT_SIGACTION, SIGILL, Disposition.DEFAULT)
        assert without.answer(nr, 0).siginfo == SigInfo(IllCode.ILLOPN, True, 0)
