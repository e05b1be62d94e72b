"""A program inside that waits for its input to end, its agent, and its stub."""

from __future__ import annotations

import os
import select
import subprocess
from pathlib import Path

from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from kerneld.commands.exec.build_stub import ensure_stub
from shared.client import Process
from tests.native.inside import Inside
from tests.support.patience import SECONDS


def start_waiting(inside: Inside, program: Path, text: str = "") -> tuple[subprocess.Popen[str], int]:
    """Start a program that waits for its input, which begins with `text`.

    Return it with the address of its memory, once that has been used.
    """
    process = inside.start([str(program)])
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(text)
    process.stdin.flush()
    return process, int(process.stdout.readline(), 16)


def agent_of(pid: int) -> int:
    """Return the pid of the agent of a process's TLB: its last child, though none that it can wait for.

    The agent of the program before an execve may be there too, as a zombie.
    """
    *_, child = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


def wait_for_end(pid: int) -> None:
    """Wait until a process that is not ours has ended."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    assert select.select([pidfd], [], [], SECONDS)[0]
    os.close(pidfd)


def address_of(symbol: str) -> int:
    """Return the address of a symbol of the stub."""
    with ensure_stub().open("rb") as file:
        table = ELFFile(file).get_section_by_name(".symtab")
        assert isinstance(table, SymbolTableSection)
        found = table.get_symbol_by_name(symbol)
        assert found is not None
    return int(found[0]["st_value"])


def free_kb(inspector: Process) -> int:
    """Return MemFree, with the unused page cache, once the memory of all that have ended has gone."""
    while True:
        lines = inspector.read_proc("kerneld/status").decode().splitlines()
        status = dict(line.split(":\t") for line in lines)
        if status["Exiting"] == "0":
            return sum(int(status[key].split()[0]) for key in ("MemFree", "CachedUnused"))
