"""The agent of a program waits for a thread that maps pages, but not for one that is killed or stopped meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from kerneld.commands.exec.build_stub import ensure_stub
from shared.client import Process
from shared.uapi.mman import Madv
from shared.uapi.page import PAGE_SIZE
from tests.native.breakpoint import Breakpoint
from tests.native.conftest import NativeDaemon
from tests.native.host_maps import exceeding_pages, mapped_pages
from tests.native.inside import Inside, compile_c
from tests.native.processes import agent_of, start_waiting, wait_for_end

STUB = Path(__file__).resolve().parents[2] / "kerneld" / "commands" / "exec" / "stub"
WHERE = """
#include <stdio.h>
#include "native.h"
int main(void)
{
	printf("%lu\\n", AREAS_START + PAGE_BYTES + __builtin_offsetof(struct thread, mapping));
}
"""


def mapping_word(directory: Path) -> int:
    """Return the address of the word by which the program's first thread says that it is mapping pages."""
    source = directory / "where.c"
    source.write_text(WHERE)
    program = compile_c(source, directory / "where", f"-I{STUB}")
    return int(subprocess.run([program], capture_output=True, check=True).stdout)


def test_an_agent_does_not_wait_for_a_thread_that_was_killed_while_it_mapped(
    inside: Inside, programs: dict[str, Path], tmp_path: Path
) -> None:
    word = mapping_word(tmp_path)
    process, _ = start_waiting(inside, programs["waits"])
    agent = agent_of(process.pid)
    with Path(f"/proc/{process.pid}/mem").open("r+b", buffering=0) as memory:
        memory.seek(word)
        assert memory.read(8) == bytes(8)
        memory.seek(word)
        memory.write((1).to_bytes(8, "little"))
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    wait_for_end(agent)


def address_of(symbol: str) -> int:
    """Return the address of a symbol of the stub."""
    with ensure_stub().open("rb") as file:
        table = ELFFile(file).get_section_by_name(".symtab")
        assert isinstance(table, SymbolTableSection)
        found = table.get_symbol_by_name(symbol)
        assert found is not None
    return int(found[0]["st_value"])


def test_a_thread_that_is_stopped_as_it_maps_a_page_holds_nobody_up(
    inside: Inside, native_daemon: NativeDaemon, programs: dict[str, Path]
) -> None:
    """The page goes while the thread stands in front of the call; then the thread may not map it."""
    process, vaddr = start_waiting(inside, programs["steps"], "a")
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        mapping = Breakpoint(process.pid, address_of("tlb_syscall"))
    except PermissionError:
        pytest.skip("this process may not trace its own children")
    process.stdin.write("b")
    process.stdin.flush()
    page = mapping.stop_there()
    assert page == vaddr + PAGE_SIZE
    inspector = Process.attach(str(native_daemon.path))
    assert inspector.process_madvise(process.pid, [(page, PAGE_SIZE)], Madv.PAGEOUT) == PAGE_SIZE
    assert process.poll() is None
    assert "VmSwap:\t       4 kB" in inspector.read_proc(f"{process.pid}/status").decode()
    process.send_signal(signal.SIGCONT)
    assert int(process.stdout.readline(), 16) == page
    assert page in [mapped.vaddr for mapped in mapped_pages(process.pid)]
    assert exceeding_pages(process.pid, inspector) == []
    inspector.close()
    process.communicate("cd")
    assert process.returncode == 0
