"""The client library. It has the role that libc has for a C program: a process attaches to kerneld and makes its calls.

    from shared.client import Process

    p = Process.attach()
    address = p.mmap(0, 4096, Prot.READ | Prot.WRITE, Map.PRIVATE | Map.ANONYMOUS)
    p.mem[address : address + 5] = b"hello"

Everything else in this package is private, except `shared.client.realmem`, which handles the caller's own real memory.
A name is imported at its first use. So a command that needs only the socket's path does not wait for numpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
_HOMES = {
    "Batch": "shared.client.batch",
    "Handler": "shared.client.signals",
    "KerneldError": "shared.client.errors",
    "KerneldGone": "shared.client.errors",
    "KerneldUnavailable": "shared.client.errors",
    "Memory": "shared.client.memory",
    "Process": "shared.client.process",
    "Reply": "shared.wire",
    "SigInfo": "shared.wire",
    "default_socket_path": "shared.client.path",
}


def __getattr__(name: str) -> Any:
    """Import a public name (PEP 562). Raises AttributeError for any other."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(home), name)
    return value
