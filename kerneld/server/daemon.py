"""The daemon's life: claim the socket, build the machine, serve, and leave nothing behind.

It owns the order. The socket is claimed before the machine is built, so that a second daemon says so at once; it is
given up last, so that whoever finds it gone finds everything else gone too. Signals are only noted (a byte in a pipe
that the loop watches): a request in progress is always finished.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import os
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import structlog

import kerneld.trace.probes
from kerneld.errors import KernelBug
from kerneld.fs.file_limits import FileRules
from kerneld.mm.limits import Sysctl
from kerneld.server.door import ClientLimits
from kerneld.server.host_watch import HOST_INTERVAL_SECONDS
from kerneld.server.logs import LIMITS
from kerneld.server.loop import Loop
from kerneld.server.panic import write_dump
from kerneld.server.socket_path import Claim, claim
from kerneld.shadowpt.segment import why_no_segment
from kerneld.syscalls.kernel import HostTargets, Kernel, KernelConfig
from shared.stop_signals import stop_signals

BYTES_PER_MIB = 1 << 20
GC_THRESHOLD = 10_000
"""Objects between two collections of the young ones; what one request makes goes by reference counting."""
TRACING_MODULES = (
    "shared.trace.events",
    *(f"kerneld.trace.{name}" for name in ("fprobe", "tracepoint", "ring", "trace", "ftrace", "probe")),
    *(f"kerneld.trace.probes.{name}" for name in kerneld.trace.probes.NAMES),
)
"""What tracing imports, in an order in which none brings many others along."""

log = structlog.get_logger("kerneld.server")


class MachineError(Exception):
    """The machine cannot be built as asked: one line for people."""


class Panic(KernelBug):
    """The machine has broken; `dump` is the path of what it was like, empty where that could not be written."""

    def __init__(self, why: str, dump: str) -> None:
        super().__init__(why)
        self.dump = dump


@dataclass(frozen=True, slots=True)
class DaemonConfig:
    """What `kerneld start` was asked for."""

    socket_path: str
    ram_bytes: int
    limits: ClientLimits
    check_invariants: bool = False
    host_targets: HostTargets = HostTargets.ASKED
    host_interval_seconds: float = HOST_INTERVAL_SECONDS
    swap_bytes: int = 0
    sysctl: Sysctl = field(default_factory=Sysctl)
    """vm.* and who gets huge pages, as the machine starts."""
    files: FileRules = field(default_factory=FileRules)
    """How many files of whom are used, and which are."""
    allow_group: int | None = None
    """The gid of a group whose members may connect too."""
    trace_buffer_bytes: int | None = None
    """The largest buffer that a trace may have; None: what `kerneld.trace` says."""
    pku: bool = True
    """Whether the processor has memory protection keys."""
    native: bool = True
    """Whether native programs may come (`kerneld exec`)."""


def run(config: DaemonConfig, on_ready: Callable[[], None]) -> None:
    """Serve until SIGINT, SIGTERM or SIGHUP; `on_ready` is called once the socket accepts.

    Raises SocketPathError or MachineError when it cannot start, Panic when the machine has broken.
    """
    raise_fd_limit()
    # Whoever asks again asks for nothing new: the end waits for the request that is being run.
    with stop_signals(ends_at_second=False) as stop:
        held = claim(os.path.abspath(config.socket_path), config.allow_group)
        try:
            kernel = build_kernel(config)
            loop = Loop(kernel, held.listener, stop.fileno(), config.limits, config.host_interval_seconds)
            log.info("kerneld ready", socket=held.path, ram_mib=config.ram_bytes // BYTES_PER_MIB, pid=os.getpid())
            reason = why_no_segment()
            if reason:
                log.warning("no shadow page table can be opened for now", reason=reason)
            spare_collector()
            on_ready()
            try:
                loop.run()
                kernel.shutdown()
            except KernelBug as error:
                # A broken machine is not taken down in order: the process ends, and the host takes back all it held.
                log.critical("kernel panic", exc_info=True)
                raise Panic(str(error), _dump(kernel, error, held)) from error
        finally:
            held.release()
    missed = LIMITS.missed()
    log.info("kerneld stopped", **({"suppressed": missed} if missed else {}))


def _dump(kernel: Kernel, error: KernelBug, held: Claim) -> str:
    try:
        path = write_dump(kernel, error, held)
    except OSError as refused:
        log.error("the dump cannot be written", error=refused.strerror)
        return ""
    log.critical("the machine's state is kept", dump=path)
    return path


def build_kernel(config: DaemonConfig) -> Kernel:
    """Return the machine. Raises MachineError when the host has not the memory, or the size will not do."""
    try:
        kernel = Kernel(
            KernelConfig(
                ram_bytes=config.ram_bytes,
                superuser_uid=os.getuid(),
                host_targets=config.host_targets,
                check_invariants=config.check_invariants,
                native=config.native,
                swap_bytes=config.swap_bytes,
                sysctl=config.sysctl,
                files=config.files,
                pku=config.pku,
            )
        )
    except (OSError, MemoryError, ValueError) as error:
        swap = f" and {config.swap_bytes // BYTES_PER_MIB} MiB of swap" if config.swap_bytes else ""
        why = (error.strerror if isinstance(error, OSError) else str(error)) or "out of memory"
        raise MachineError(f"cannot build a machine of {config.ram_bytes // BYTES_PER_MIB} MiB{swap}: {why}") from None
    kernel.load_tracing = functools.partial(_load_tracing, config.trace_buffer_bytes)
    return kernel


def spare_collector() -> None:
    """Leave what the start has made out of every later garbage collection, and have fewer of the small ones."""
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)


def raise_fd_limit() -> None:
    """Allow as many fds as the system lets us: each client costs a connection, and each process a pidfd."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _load_tracing(max_ring_bytes: int | None, kernel: Kernel) -> Iterator[None]:
    """Make the machine one that can be traced, when the first trace is asked for: a start need not wait for it.

    Module by module, so that others are served in between: together they take as long as many requests.
    """
    for module in TRACING_MODULES:
        importlib.import_module(module)
        yield
    from kerneld.trace.tracing import MAX_RING_BYTES, Tracing  # noqa: PLC0415

    if kernel.tracing is None:
        Tracing(kernel, MAX_RING_BYTES if max_ring_bytes is None else max_ring_bytes)
