"""Requests of several programs at once: each goes on by a piece when the test says so."""

from __future__ import annotations

from collections.abc import Sequence

from kerneld.syscalls import dispatch
from kerneld.syscalls.answer import Answer, Call, Work
from kerneld.syscalls.table import RESTART
from shared.wire import U64_MASK
from tests.support.programs import Program


class Pieces:
    """The requests that have begun, by program: each has one at most."""

    def __init__(self) -> None:
        self._calls: dict[Program, Call] = {}

    @property
    def busy(self) -> list[Program]:
        """The programs whose request goes on. The request of a program that has ended is given up."""
        for program in [program for program in self._calls if program.process.ended]:
            self.give_up(program)
        return list(self._calls)

    def begin(self, program: Program, nr: int, *args: int, data: bytes = b"", fds: Sequence[int] = ()) -> Answer | None:
        """Run the first piece of a request; return the answer if there is one already. The descriptors become its."""
        assert program not in self._calls
        a, b, c, d, e, f = [arg & U64_MASK for arg in args] + [0] * (6 - len(args))
        call = Call(program.kernel, program.thread, (a, b, c, d, e, f), data, [*fds])
        return self._note(program, call, dispatch.run(call, nr))

    def go_on(self, program: Program) -> Answer | None:
        """Run the next piece."""
        call = self._calls.pop(program)
        return self._note(program, call, dispatch.run(call, RESTART))

    def _note(self, program: Program, call: Call, result: int | Answer | Work) -> Answer | None:
        if isinstance(result, Work):
            call.work = result
            self._calls[program] = call
            return None
        return Answer(result) if isinstance(result, int) else result

    def give_up(self, program: Program) -> None:
        """Run no more pieces."""
        work = self._calls.pop(program).work
        assert work is not None
        work.close()
