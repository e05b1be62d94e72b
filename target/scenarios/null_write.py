"""A write through a null pointer: the process dies of a real SIGSEGV, as any program does."""

from __future__ import annotations

from shared.client import Process
from target.scenario import Beats, Scenario, Step
from target.scenarios.program import find_program
from target.stage import Stage

NULL = 0
VALUE = 5


def _play(stage: Stage) -> Beats:
    """Announce the write. The program makes it after the end of the tour."""
    path = find_program()
    loaded = f"execve of {path}, for the memory of a real program. Then a" if path is not None else "A"
    yield Step(
        f"{loaded} write of {VALUE} at address {NULL:#x}, as `int *ptr = NULL; *ptr = {VALUE};` makes it. Nothing is "
        "mapped there: this process is about to die of SIGSEGV."
    )
    if path is not None:
        stage.process.execve(path, [path], [])


def write_to_null(process: Process) -> None:
    """Store an int at address 0: the kernel ends the process, and the client library ends the real one."""
    process.mem.store_u32(NULL, VALUE)


NULL_WRITE = Scenario(
    "null-write",
    "A write through a null pointer",
    "A fault that no mapping explains becomes a signal, and the signal is the end of the process.",
    _play,
    in_window=False,
    ends_process=True,
    last=write_to_null,
)
