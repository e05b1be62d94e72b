"""The C program of the demonstration: unmodified, compiled here, and run by `kerneld exec`.

Knows the program's text, its lines, and why it may not be possible here. Neither a missing compiler nor a host without
seccomp fails the demonstration: a line says so.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from target.demo_program import DemoError, Program

START, PAGES, PAGE_BYTES = 0x2000000000, 4, 4096
SOURCE = """\
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

int main(void)
{
    char *p = mmap((void *)0x2000000000, 4 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    printf("mapped four pages at %p\\n", (void *)p);
    fflush(stdout);
    getchar();
    strcpy(p + 4096, "hello");
    printf("wrote %s to the second\\n", p + 4096);
    fflush(stdout);
    getchar();
    return 0;
}
"""
EXPECTED = ((4, 4, 0), (4, 4, 1), (0, 0, 0))
"""The counts that the inspector must show after each line of the program, and after its end."""


def find_compiler() -> str | None:
    """Return the path of a C compiler; None if there is none."""
    return next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)


def compile_program(compiler: str, directory: Path) -> Path:
    """Write and compile the program. Raises DemoError if the compiler fails."""
    source, program = directory / "hello.c", directory / "hello"
    source.write_text(SOURCE)
    done = subprocess.run([compiler, "-o", program, source], capture_output=True, text=True, check=False)
    if done.returncode:
        raise DemoError(f"{compiler} cannot compile the program: {done.stderr.strip()}")
    return program


def why_not(program: Program, first_line: str | None) -> str:
    """Return why the program could not be run inside, in the words of kerneld; "" if it runs."""
    if first_line is None:
        return f"{program.name} has said nothing"
    return first_line if first_line.startswith("kerneld: ") else ""
