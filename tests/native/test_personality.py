"""The flags of personality(2) about memory, and the stack that a program asks for: the same inside and outside."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.native.inside import Inside, compile_c
from tests.support.rights import needs_the_hosts_rights

ADDR_COMPAT_LAYOUT, ADDR_NO_RANDOMIZE = 0x20_0000, 0x4_0000
READ_IMPLIES_EXEC, MMAP_PAGE_ZERO = 0x40_0000, 0x10_0000
OTHERS = 0x800_0000 | 0x80_0000 | 0x100_0000
"""ADDR_LIMIT_3GB, ADDR_LIMIT_32BIT and WHOLE_SECONDS: no program of 64 bits sees them."""


@needs_the_hosts_rights  # to map address 0
@pytest.mark.parametrize(
    "flags", [0, READ_IMPLIES_EXEC, MMAP_PAGE_ZERO, ADDR_COMPAT_LAYOUT, MMAP_PAGE_ZERO | ADDR_COMPAT_LAYOUT | OTHERS]
)
def test_each_flag_does_the_same(flags: int, inside: Inside, programs: dict[str, Path]) -> None:
    """At once, in a child, in a thread, and behind an execve."""
    end = inside.agrees([str(programs["personality"]), f"{flags:x}"])
    assert end.status == 0, end
    assert "code in data: 7" in end.output


@needs_the_hosts_rights
def test_a_program_begins_with_the_personality_of_who_starts_it(inside: Inside, programs: dict[str, Path]) -> None:
    """`kerneld exec` is a host's program: what it has, the program inside has.

    Page 0 is mapped by root alone: the user that runs kerneld is a superuser inside, and outside has no page 0.
    """
    flags = ADDR_COMPAT_LAYOUT | ADDR_NO_RANDOMIZE | (0 if os.geteuid() else MMAP_PAGE_ZERO)
    command = inside.command([str(programs["personality"]), "again", "0"])
    start = f"import ctypes, os, sys; ctypes.CDLL(None).personality({flags}); os.execv(sys.argv[1], sys.argv[1:])"
    said = [inside.outside([sys.executable, "-c", start, *words]) for words in (command, command[-3:])]
    assert said[0] == said[1]
    assert f"behind execve: {flags:x}" in said[0].output


@pytest.mark.parametrize("option", ["-Wl,-z,execstack", "-Wl,-z,noexecstack", "without"])
def test_the_stack_has_the_rights_that_the_program_asks_for(option: str, inside: Inside, tmp_path: Path) -> None:
    """By PT_GNU_STACK; a program of 64 bits without it has no executable stack."""
    source = tmp_path / "stack.c"
    source.write_text(
        """#include <stdio.h>
#include <string.h>
int main(void)
{
	char line[512];
	FILE *maps = fopen("/proc/self/maps", "r");
	while (fgets(line, sizeof line, maps))
		if (strstr(line, "[stack]") || strstr(line, "[heap]"))
			printf("%.4s %s", strchr(line, ' ') + 1, strchr(line, '['));
	return 0;
}
"""
    )
    program = compile_c(source, tmp_path / "stack", "-static", *([] if option == "without" else [option]))
    if option == "without":
        remove_gnu_stack(program)
    assert inside.agrees([str(program)]).output.count("\n") == 2


def remove_gnu_stack(program: Path) -> None:
    """Make the header PT_GNU_STACK one that nobody reads (PT_NULL)."""
    image = bytearray(program.read_bytes())
    start, size, count = int.from_bytes(image[32:40], "little"), 56, int.from_bytes(image[56:58], "little")
    (found,) = [at for at in range(start, start + size * count, size) if image[at : at + 4] == b"\x51\xe5\x74\x64"]
    image[found : found + 4] = bytes(4)
    program.write_bytes(image)
