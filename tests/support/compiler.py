"""The system's compiler: C and C++ programs for the tests, each with every warning an error."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

from tests.support.patience import SECONDS

ROOT = Path(__file__).resolve().parents[2]
INCLUDE = ROOT / "shared" / "include"
STRICT = ("-Wall", "-Wextra", "-Werror", "-O1", "-g")


def include_directory(abi: str) -> Path:
    """Return what to give to -I for a semester's <linux/shadowpt.h>."""
    return INCLUDE if abi == "f24" else INCLUDE / abi


def build(output: Path, sources: Sequence[Path], *flags: str, compiler: str = "cc") -> Path:
    """Compile and link `sources` into `output`; the test is skipped where there is no such compiler."""
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler} here")
    command = [compiler, *STRICT, *flags, "-o", str(output), *map(str, sources)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    return output


@cache
def has_sanitizer(directory: Path) -> bool:
    """Tell whether the compiler has AddressSanitizer and UBSan, and a program of theirs starts here."""
    source, program = directory / "probe.c", directory / "probe"
    source.write_text("int main(void) { return 0; }\n")
    command = ["cc", "-fsanitize=address,undefined", "-o", str(program), str(source)]
    if shutil.which("cc") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        return False
    return subprocess.run([program], capture_output=True, check=False).returncode == 0
