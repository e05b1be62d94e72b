"""The agent of a program that is killed while it maps pages ends too."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

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
