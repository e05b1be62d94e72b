"""The filter of `kerneld run --explain`."""

from __future__ import annotations

from kerneld.commands.run import explain
from kerneld.commands.semesters import SEMESTERS


def test_the_filter_tells_of_every_semesters_numbers_and_of_no_other() -> None:
    wanted = {number for semester in SEMESTERS.values() for number in semester.numbers}
    code = explain.filter_instructions()

    def outcome(number: int, arch: int) -> int:
        """Run the filter, as Linux's net/core/filter.c does."""
        at, accumulator = 0, 0
        while True:
            op, jt, jf, k = code[at]
            at += 1
            if op == explain._RET_K:
                return k
            if op == explain._LD_W_ABS:
                accumulator = arch if k == explain._AT_ARCH else number
            else:
                holds = accumulator == k if op == explain._JEQ_K else accumulator >= k
                at += jt if holds else jf

    for number in range(1000):
        told = outcome(number, explain._AUDIT_ARCH_X86_64) == explain._RET_USER_NOTIF
        assert told == (number in wanted), number
        assert outcome(number, 3) == explain._RET_ALLOW
