"""`kerneld start --no-pku` is a processor without protection keys; a real program, with the client library, on both."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.daemons import environment, private_socket, running_daemon
from tests.support.patience import SECONDS

PROGRAM = """
import errno
from shared.client import Process
from shared.uapi.mman import Pkey

p, said = Process.attach(), []
at = p.mmap(0, 8192, 3, 0x22)

def handler(signo, info):
    said.append((info.si_code, info.si_addr - at, info.si_pkey))
    said.append(f"{p.rdpkru():#x}")
    p.mprotect(at, 4096, 3)

p.sigaction(11, handler)
try:
    key = p.pkey_alloc(0, Pkey.DISABLE_WRITE)
except OSError as error:
    said.append(errno.errorcode[error.errno])
    p.mprotect(at, 4096, 4)
else:
    p.pkey_mprotect(at + 4096, 4096, 3, key)
    said.append((key, p.pkey_get(key), p.mem.load_u8(at + 4096), f"{p.rdpkru():#x}"))
    p.pkey_set(key, 0)
    p.mem.store_u8(at + 4096, 7)
    p.pkey_set(key, Pkey.DISABLE_WRITE)
    p.mprotect(at, 4096, 4)
said.append(p.mem.load_u8(at))
if len(said) > 2:
    said.append(p.pkey_get(key))
    p.pkey_free(key)
print(said, flush=True)
p.sigaction(11, 0)
p.rdpkru()
p.mem.store_u8(at + 4096, 8)
"""
WITH = [(1, 2, 0, "0x55555558"), (4, 0, 2), "0x55555554", 0, 2]
WITHOUT = ["EINVAL", 0]


@pytest.mark.parametrize(
    ("options", "said", "ends_by"), [([], WITH, signal.SIGSEGV), (["--no-pku"], WITHOUT, signal.SIGILL)]
)
def test_a_program(tmp_path: Path, options: list[str], said: list[object], ends_by: int) -> None:
    path = private_socket(tmp_path)
    with running_daemon(path, *options):
        done = subprocess.run(
            [sys.executable, "-P", "-c", PROGRAM],
            env=environment(path),
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    assert (done.stdout, done.returncode) == (f"{said}\n", -ends_by)
    # The library says where the program has died.
    assert signal.Signals(ends_by).name in done.stderr
    assert len(done.stderr.splitlines()) == 1
