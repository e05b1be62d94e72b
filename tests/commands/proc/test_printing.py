"""What a file holds cannot steer the terminal that it is printed on."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from kerneld.commands.proc.printing import emit

EVIL = "a\x1b]0;title\x07\u202e\x9bm\r"


def test_a_file_is_escaped_for_a_terminal_alone(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    emit([EVIL.encode()])
    assert capfdbinary.readouterr().out == EVIL.encode()
    program = f"from kerneld.commands.proc.printing import emit; emit([{EVIL.encode()!r}, b'end\\n'])"
    ours, theirs = pty.openpty()
    subprocess.run([sys.executable, "-c", program], stdout=theirs, check=True, cwd=Path(__file__).parents[3])
    os.close(theirs)
    shown = os.read(ours, 4096)
    os.close(ours)
    assert shown == b"a\\033]0;title\\007\\342\\200\\256\\302\\233m\\015end\r\n"
