"""Shortens a program with a divergence, so that the divergence stays.

Does not know the divergence: a function says whether a candidate still has it. First it leaves out operations, longest
runs first, until each one is needed. Then it simplifies single arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from kerneld.referee.program import At, Op, Program

Diverges = Callable[[Program], bool]


def shrink(program: Program, diverges: Diverges) -> Program:
    """Return the shortened program: `diverges` fails if an operation is left out or an argument simplified further."""
    while True:
        before = program
        program = _leave_out(program, diverges)
        program = _simplify(program, diverges)
        if program == before:
            return program


def _leave_out(program: Program, diverges: Diverges) -> Program:
    run = max(len(program) // 2, 1)
    while run:
        start = 0
        while start < len(program):
            candidate = program[:start] + program[start + run :]
            if candidate and diverges(candidate):
                program = candidate
            else:
                start += run
        run //= 2
    return program


def _simplify(program: Program, diverges: Diverges) -> Program:
    for step in range(len(program)):
        program = _fewer_times(program, step, diverges)
        for position in range(len(program[step].args)):
            for simpler in _simpler(program[step], position):
                candidate = (*program[:step], simpler, *program[step + 1 :])
                if diverges(candidate):
                    program = candidate
                    break
    return program


def _fewer_times(program: Program, step: int, diverges: Diverges) -> Program:
    """Let an operation run as few times as still diverge."""
    fewer = program[step].times - 1
    while fewer:
        op = program[step]
        candidate = (*program[:step], op._replace(times=op.times - fewer), *program[step + 1 :])
        if op.times > fewer and diverges(candidate):
            program = candidate
        else:
            fewer //= 2
    return program


def _simpler(op: Op, position: int) -> Iterator[Op]:
    """Yield the operation with one argument replaced: 0, a page, one bit less, a whole number of pages."""
    arg = op.args[position]
    if isinstance(arg, At):
        choices: list[At | int] = [At(arg.base, offset) for offset in (0, arg.offset & ~4095) if offset != arg.offset]
    else:
        bits = [arg & ~(1 << bit) for bit in range(32) if arg >> bit & 1 and arg < 1 << 32]
        choices = [value for value in (0, 4096, arg & ~4095, *bits) if value < arg]
    for choice in choices:
        yield op._replace(args=(*op.args[:position], choice, *op.args[position + 1 :]))
