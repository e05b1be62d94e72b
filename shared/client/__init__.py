"""The client library: what a libc is to a C program. A process attaches to kerneld, and is one of its machine.

    from shared.client import Process

    p = Process.attach()
    address = p.mmap(0, 4096, Prot.READ | Prot.WRITE, Map.PRIVATE | Map.ANONYMOUS)
    p.mem[address : address + 5] = b"hello"

Everything else in this package is private, but for `shared.client.realmem`: the caller's own real memory.
"""

from __future__ import annotations

from shared.client.batch import Batch
from shared.client.errors import KerneldError, KerneldGone, KerneldUnavailable
from shared.client.memory import Memory
from shared.client.path import default_socket_path
from shared.client.process import Process
from shared.client.signals import Handler
from shared.wire import Reply, SigInfo

__all__ = [
    "Batch",
    "Handler",
    "KerneldError",
    "KerneldGone",
    "KerneldUnavailable",
    "Memory",
    "Process",
    "Reply",
    "SigInfo",
    "default_socket_path",
]
